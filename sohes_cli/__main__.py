"""`python -m sohes_cli`, as `accelerate launch -m` needs it."""

from sohes_cli.cli import main

if __name__ == "__main__":
    main()
