"""What each command of the CLI does once its arguments are known."""
