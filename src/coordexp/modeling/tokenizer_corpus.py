"""The corpus of the compact tokenizer: prompts and answers with the names of everyday objects."""

from __future__ import annotations

COLOURS = """
red green blue yellow cyan magenta orange purple pink brown black white gray grey teal lime navy
"""

SHAPES = """
circle square triangle rectangle ellipse star cross diamond pentagon hexagon octagon ring disk disc box ball heart
arrow crescent trapezoid parallelogram oval line dot bar wedge kite shape
"""

THINGS = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, parking
meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie,
suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis
racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot
dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard,
cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier,
toothbrush
"""

PHOTOGRAPHED = """
aerosol alarm album almond antenna apron armchair award awning bagel bandage banner barrel basket bath beach bead
bean belt beverage bicycle billboard binder blanket blender blouse board bolt boot bouquet bow bracelet brush bucket
building bulb bull bun butter button cabinet camel camera candle candy cap cape card cart carton case cauliflower
celery chain cheese cherry chicken choker cigarette coaster coat coffee coin collar condiment cone container cookie
cooler cord cover crab crate cream cucumber cupboard curtain cushion deer desk dish display doll door drawer dress
duck earring egg eggplant envelope eyeglasses faucet fan feather fence figurine fireplace fish flag flip flower food
foot fruit garlic gift glove goat goggles goose grape grill guitar gun hair hammer hand hat headband headlight
headphones headset heater helmet hinge hook hose house ice jacket jar jean jersey juice kettle knob label ladder
lamb lamp lamppost leaf leather lemon lettuce license lid light lion lollipop machine magazine magnet mailbox map
mask mast mat meat milk mirror mitten monitor monkey mug mushroom napkin necklace newspaper notebook nut olive onion
pad paddle painting pan pants paper parasol peach pear pen pencil pepper piano pickle pie pillow pineapple pipe
pitcher plate plow pole pot potato pumpkin puppet purse rabbit radio raft rail rearview ribbon robe rope rug saddle
salad salt sandal sauce sauceboat saucer scarf sculpture seat shampoo shark shelf shirt shoe short shoulder shower
signboard skirt soap sock sofa soup spatula speaker spectacles squirrel stand statue steering stirrup stool stove
strap straw street strawberry sunflower sunglasses sweater swimsuit table tablecloth tag tank tape tarp telephone
thermostat tiger timer tinfoil tissue toast tomato tongs towel toy track traffic tray tripod trousers trunk turtle
tyre vegetable vent vest wall wallet watch water watermelon wheel wheelchair whistle wig windmill window windshield
wing wooden wristband wristlet yogurt young
"""


def lines() -> list[str]:
    """Prompts and answers in the form that the model is given; frequent words become single tokens first."""
    shapes = SHAPES.split()
    coloured = [f"{colour} {shape}" for colour in COLOURS.split() for shape in shapes]
    things = [" ".join(name.split()) for name in THINGS.split(",")]
    text = ['{"objects": []}', '{"objects":[]}'] * 50
    for name in [*things, *shapes, *PHOTOGRAPHED.split(), *coloured]:
        boxes = f'"desc": "{name}", "bbox_2d": [0, 0, 0, 0]'
        polygon = f'"desc": "{name}", "poly": [1, 2, 3]'
        answer = f'{{"objects": [{{{boxes}}}, {{{polygon}}}]}}'
        text += [answer, answer, answer.replace(": ", ":").replace(", ", ",")]
        text += ["Detect every object in the image.", f"Detect every object of these categories in the image: {name}."]
        text.append(f"system\nuser\nassistant\nYou are a helpful assistant. Find all {name}, {name} and {name}s.")
    return text
