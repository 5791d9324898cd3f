"""`python -m breakwater_gateway`, `breakwater`, `breakwater-gateway`: the same command."""

from breakwater_gateway.cli.main import main

if __name__ == "__main__":
    main()
