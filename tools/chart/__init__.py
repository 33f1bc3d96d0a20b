"""The Helm chart: Helm itself, and the archive of a release."""
