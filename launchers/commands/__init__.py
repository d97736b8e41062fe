"""One module per subcommand; each exports its click command or group as `command`."""
