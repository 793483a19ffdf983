"""`python -m effcli` is `eff`."""

from effcli.app import main

if __name__ == "__main__":
    main()
