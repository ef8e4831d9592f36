"""The app's entry: `python app.py`, on a person's machine and as a Hugging Face Space."""

import sys

from lora_studio.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
