"""`python -m service`: the process, if there is memory for one. Exit code 0 after a drain, 2 where it cannot start."""

import sys

from service.memory import refusal_to_start


def main() -> int:
    refusal = refusal_to_start()
    if refusal is not None:
        print(f"saccade: {refusal}", file=sys.stderr)
        return 2
    from service.process import main as run  # what it imports is most of what would not fit

    return run()


if __name__ == "__main__":
    sys.exit(main())
