"""The console: the web page at ``/ui``. It is loaded at the first request for it."""
