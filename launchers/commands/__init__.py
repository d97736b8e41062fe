"""The subcommands of `longrope`, one module each, whose click command or group is `command`."""
