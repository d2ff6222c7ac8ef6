"""`python -m sohes_cli`, the form that `accelerate launch -m` needs."""

from sohes_cli.cli import main

if __name__ == "__main__":
    main()
