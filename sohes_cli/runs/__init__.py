"""Infrastructure of long commands: processes, interruption, shards, atomic files, progress, devices."""
