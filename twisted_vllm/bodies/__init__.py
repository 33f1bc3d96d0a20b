"""Reading and editing request bodies: JSON and multipart forms. Plain, without I/O."""
