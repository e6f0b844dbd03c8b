"""One picture on its way to an answer, with the figures of a model: python examples/tour.py [MODEL]."""

import sys

import torch
from PIL import Image, ImageDraw, ImageFont

import cascadevl
from cascadevl.core.generation import Generation


@torch.inference_mode()
def main(name: str) -> None:
    bundle = cascadevl.load(name)
    picture = Image.new("RGB", (1280, 960), "white")
    ImageDraw.Draw(picture).text((300, 400), "hello", font=ImageFont.load_default(size=240), fill="black")
    messages = [
        {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "Read the text."}]}
    ]

    inputs = bundle.preprocess(messages)
    print(f"spec       {bundle.spec.hash}: tiles of {bundle.spec.tile_px} px, at most {bundle.spec.max_tiles}")
    print(f"tiling     {picture.size} px -> grid {inputs.grids[0]} -> tiles {tuple(inputs.tiles.shape)} uint8")
    print(f"template   {len(inputs.token_ids)} tokens, {inputs.num_visual_tokens} of them visual")

    model = bundle.model
    patches_SPD = model.vision_model(inputs.tiles)
    print(f"vision     {tuple(patches_SPD.shape)}: tiles, patches, width")
    print(f"projector  {tuple(model.encode_tiles(inputs.tiles).shape)}: tiles, tokens, width")
    embed_TD = model.embed(inputs.token_ids, inputs.tiles)
    print(f"internvl   {tuple(embed_TD.shape)}: visual tokens at their places")
    logits_TV = model(inputs.token_ids, inputs.tiles)
    print(f"decoder    {tuple(logits_TV.shape)}: a score for every entry at every place")

    for piece in bundle.stream_generation(messages):
        if isinstance(piece, Generation):
            seconds = {name: round(value, 3) for name, value in piece.timings.items()}
            print(f"answer     {piece.text!r}, {piece.finish_reason}, {seconds}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "nano")
