"""What a version of the gateway left on a machine, from which the next ones are upgraded.

Each directory here is named after a version. ``make release-fixture`` makes it by running that version.
"""
