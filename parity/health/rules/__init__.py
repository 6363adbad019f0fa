"""The rules of health, a file each; `parity.health.rule` says what a file has."""
