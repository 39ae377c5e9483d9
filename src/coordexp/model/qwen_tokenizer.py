"""Tokenizers of the Qwen class: a compact one trained on our own text, and any one from a vocabulary and merges."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from coordexp import io

# Qwen's added tokens in id order; the flag says whether decoding with skip_special_tokens drops them.
QWEN_ADDED_TOKENS: tuple[tuple[str, bool], ...] = (
    ("<|endoftext|>", True),
    ("<|im_start|>", True),
    ("<|im_end|>", True),
    ("<|object_ref_start|>", True),
    ("<|object_ref_end|>", True),
    ("<|box_start|>", True),
    ("<|box_end|>", True),
    ("<|quad_start|>", True),
    ("<|quad_end|>", True),
    ("<|vision_start|>", True),
    ("<|vision_end|>", True),
    ("<|vision_pad|>", True),
    ("<|image_pad|>", True),
    ("<|video_pad|>", True),
    ("<tool_call>", False),
    ("</tool_call>", False),
    ("<|fim_prefix|>", False),
    ("<|fim_middle|>", False),
    ("<|fim_suffix|>", False),
    ("<|fim_pad|>", False),
    ("<|repo_name|>", False),
    ("<|file_sep|>", False),
    ("<tool_response>", False),
    ("</tool_response>", False),
    ("<think>", False),
    ("</think>", False),
)

# How Qwen cuts text before merging: words with a leading sign or space, single digits, runs of signs, white space.
_WORDS = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)

_COLOURS = "red green blue yellow cyan magenta orange purple pink brown black white gray grey teal lime navy".split()
_SHAPES = (
    "circle square triangle rectangle ellipse star cross diamond pentagon hexagon octagon ring disk disc box ball"
    " heart arrow crescent trapezoid parallelogram oval line dot bar wedge kite shape"
).split()
_THINGS = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,"
    "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,"
    "wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,"
    "chair,couch,potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,"
    "toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
).split(",")

_WORDS_OF_PHOTOGRAPHS = (
    "aerosol alarm album almond antenna apron armchair award awning bagel bandage banner barrel basket bath beach bead"
    " bean belt beverage bicycle billboard binder blanket blender blouse board bolt boot bouquet bow bracelet brush"
    " bucket building bulb bull bun butter button cabinet camel camera candle candy cap cape card cart carton case"
    " cauliflower celery chain cheese cherry chicken choker cigarette coaster coat coffee coin collar condiment cone"
    " container cookie cooler cord cover crab crate cream cucumber cupboard curtain cushion deer desk dish display"
    " doll door drawer dress duck earring egg eggplant envelope eyeglasses faucet fan feather fence figurine fireplace"
    " fish flag flip flower food foot fruit garlic gift glove goat goggles goose grape grill guitar gun hair hammer hand"
    " hat headband headlight headphones headset heater helmet hinge hook hose house ice jacket jar jean jersey juice"
    " kettle knob label ladder lamb lamp lamppost leaf leather lemon lettuce license lid light lion lollipop machine"
    " magazine magnet mailbox map mask mast mat meat milk mirror mitten monitor monkey mug mushroom napkin necklace"
    " newspaper notebook nut olive onion pad paddle painting pan pants paper parasol peach pear pen pencil pepper piano"
    " pickle pie pillow pineapple pipe pitcher plate plow pole pot potato pumpkin puppet purse rabbit radio raft rail"
    " rearview ribbon robe rope rug saddle salad salt sandal sauce sauceboat saucer scarf sculpture seat shampoo shark"
    " shelf shirt shoe short shoulder shower signboard skirt soap sock sofa soup spatula speaker spectacles squirrel"
    " stand statue steering stirrup stool stove strap straw street strawberry sunflower sunglasses sweater swimsuit"
    " table tablecloth tag tank tape tarp telephone thermostat tiger timer tinfoil tissue toast tomato tongs towel toy"
    " track traffic tray tripod trousers trunk turtle tyre vegetable vent vest wall wallet watch water watermelon wheel"
    " wheelchair whistle wig windmill window windshield wing wooden wristband wristlet yogurt young"
).split()

# Renders text, pictures and videos as Qwen3-VL expects them: no default system prompt, one place per picture.
CHAT_TEMPLATE = """\
{%- macro render(content) -%}
{%- if content is string -%}
{{- content -}}
{%- else -%}
{%- for part in content -%}
{%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part.type == 'video' or 'video' in part -%}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- elif 'text' in part -%}
{{- part.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + render(message.content) + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def compact_tokenizer(size: int = 1536) -> Tokenizer:
    """A byte-level BPE with at most `size` entries plus Qwen's 26 added tokens; every byte has its own entry."""
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.add_tokens(_added_tokens())
    return tokenizer


def tokenizer_from_vocab(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """A Qwen tokenizer from byte-level entries (text -> id, ids from 0) and merges, with the 26 added tokens after."""
    tokenizer = _byte_level(models.BPE(vocab=vocab, merges=merges))
    tokenizer.add_tokens(_added_tokens())
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """The tokenizer files of a Qwen3-VL checkpoint, in the form that its publishers use."""
    tokenizer.save(str(folder / "tokenizer.json"))
    model = json.loads(tokenizer.to_str())["model"]
    io.write_json(folder / "vocab.json", dict(sorted(model["vocab"].items(), key=lambda item: item[1])))
    io.write_text(folder / "merges.txt", "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model["merges"]))
    added = {
        str(i): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
        for i, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "extra_special_tokens": {},
        "model_max_length": max_length,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    io.write_json(folder / "tokenizer_config.json", config)
    io.write_text(folder / "chat_template.jinja", CHAT_TEMPLATE)


def _added_tokens() -> list[AddedToken]:
    return [AddedToken(text, special=special, normalized=False) for text, special in QWEN_ADDED_TOKENS]


def _byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = None
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _corpus() -> list[str]:
    """Prompts and answers as the model will see them; the words weigh more the more often they occur."""
    coloured = [f"{colour} {shape}" for colour in _COLOURS for shape in _SHAPES]
    names = [*_THINGS, *_SHAPES, *_WORDS_OF_PHOTOGRAPHS, *coloured]
    lines = ['{"objects": []}', '{"objects":[]}'] * 50
    for name in names:
        for box in (", ".join(["0"] * 4), "1, 2, 3"):
            lines.append(
                f'{{"objects": [{{"desc": "{name}", "bbox_2d": [{box}]}}, {{"desc": "{name}", "poly": [0]}}]}}'
            )
        lines.append(f'{{"objects":[{{"desc":"{name}","bbox_2d":[0,0,0,0]}},{{"desc":"{name}","poly":[0]}}]}}')
        lines.append(
            f"Detect every object in the image.\nDetect every object of these categories in the image: {name}."
        )
        lines.append(f"system\nuser\nassistant\nYou are a helpful assistant. Find all {name}, {name} and {name}s.")
    return lines
