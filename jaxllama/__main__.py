"""The installed command `jaxllama`, and `python -m jaxllama`."""

from jaxllama.command_line.process import command

script = command("jaxllama.cli")

if __name__ == "__main__":
    script()
