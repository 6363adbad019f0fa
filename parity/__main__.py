"""The installed command `parity`, and `python -m parity`."""

from jaxllama.command_line.process import command

script = command("parity.cli")

if __name__ == "__main__":
    script()
