"""The commands of `sohes`, one file each."""
