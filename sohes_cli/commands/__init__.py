"""Commands of `sohes`, one file each."""
