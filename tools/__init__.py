"""Programs that the project's people run: releases, and what is checked before one."""
