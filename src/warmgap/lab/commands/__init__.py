"""The subcommands of `warmgap`, one a module."""
