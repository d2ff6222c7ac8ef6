# list the recipes
default:
    @just --list

# a virtual environment with the package and its tests
setup:
    python3 -m venv .venv
    .venv/bin/pip install -e '.[test]'

# format the code
fmt:
    ruff format .
    ruff check --fix .

# style and common mistakes
lint:
    ruff format --check .
    ruff check .

# static types, strict, both packages
types:
    mypy

# the test suite
test *ARGS:
    pytest {{ARGS}}

# operations and stages on this machine, each checked before it is timed; `just bench --quick` takes a minute
bench *ARGS:
    sohes bench {{ARGS}}

# scores and time against pycocotools; DATA holds annotated sets, LABELS their labels
bench-evaluation DATA LABELS OUT="benchmarks/results/evaluation.json":
    python benchmarks/evaluation.py --data {{DATA}} --labels {{LABELS}} --out {{OUT}} --large

# labels with a backbone beside its control and peers; DATA holds annotated sets
bench-backbone DATA BACKBONE="runs/pretrain" OUT="benchmarks/results/backbone_quality.json":
    python benchmarks/backbone_quality.py --data {{DATA}} --backbone {{BACKBONE}} --limit 25 --out {{OUT}}

# everything that a change must pass
check: lint types test
