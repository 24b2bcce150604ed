"""What Bazel starts for a test target: pytest on the files named."""

import sys

import pytest

if __name__ == "__main__":
    sys.exit(pytest.main(sys.argv[1:]))
