"""`python -m benchmarks`: every benchmark there is, small."""

from benchmarks import dispatcher

if __name__ == "__main__":
    dispatcher.main()
