"""What stands below everything: errors, streams, locks, the machine, ranks, and the commands by name."""
