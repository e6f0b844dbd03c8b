"""Ask about a picture: python examples/ask.py PICTURE QUESTION [MODEL]."""

import sys

import cascadevl


def main(picture: str, question: str, model: str = "nano") -> None:
    bundle = cascadevl.load(model)
    messages = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": question}]}]
    for piece in bundle.stream(messages):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
