"""Meta's directories: .pth files and params.json."""
