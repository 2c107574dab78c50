"""Short stories in simple English, made from twelve plots with varying sentences.

Square brackets list alternatives, braces name a slot: `{name} [ran|walked] to {place}`. Knows nothing about tokens.
"""

from __future__ import annotations

import random

from .documents import Document, Exchange
from .templates import expand

GIRLS = [
    "Lily",
    "Anna",
    "Mia",
    "Emma",
    "Sophie",
    "Lucy",
    "Rosa",
    "Clara",
    "Nora",
    "Ella",
    "Grace",
    "Molly",
    "Ruby",
    "Alice",
    "Julia",
    "Sara",
]
BOYS = [
    "Tom",
    "Ben",
    "Max",
    "Leo",
    "Jack",
    "Sam",
    "Tim",
    "Paul",
    "Finn",
    "Oscar",
    "Peter",
    "Noah",
    "Adam",
    "Luke",
    "Henry",
    "Oliver",
]
ANIMALS = [
    "fox",
    "rabbit",
    "mouse",
    "frog",
    "duck",
    "cat",
    "dog",
    "squirrel",
    "hedgehog",
    "turtle",
    "bear",
    "lamb",
    "pony",
]
CHARACTER = ["kind", "brave", "curious", "clever", "cheerful", "gentle", "quiet", "friendly"]
COLOURS = ["red", "blue", "green", "yellow", "white", "golden"]
TOYS = ("ball", "kite", "teddy bear", "toy boat", "drum", "hat", "scarf", "book", "toy train", "lantern")
PLACES = (
    "the forest", "the park", "the garden", "the river", "the lake", "the village", "the hill", "the meadow",
    "the beach", "the old mill",
)  # fmt: skip
RELATIVES = {
    "mother": "she", "father": "he", "grandmother": "she", "grandfather": "he", "sister": "she", "brother": "he",
}  # fmt: skip
FOODS = ["bread", "cheese", "cake", "pie", "chocolate"]
FRUITS = ["apples", "berries", "pears", "nuts", "cherries", "plums"]

WHEN = ("One day", "One sunny morning", "One afternoon", "One day")
WHEN_SAME_DAY = ("A little later", "Soon", "Later that day")

PLOTS = {
    "lost": """
{name} had a {colour} {toy} and [took it everywhere|loved it more than anything|played with it every day].
[One morning|One day|One evening], the {toy} was [gone|not there].
{name} looked [under the bed|behind the door|in the kitchen], but {he} could not find it.
[{He} felt very sad.|{He} began to cry.|{He} did not know what to do.]
["What is wrong?" asked {his} {relative}.|"Why are you sad?" asked {his} {relative}.]
"I [lost|can not find] my {toy}," said {name}.
["Let us look together," said {his} {relative}.|"Do not worry, I will help you," said {his} {relative}.]
[They looked and looked, and at last they found|Together they went to {place} and found] the {toy} [under a tree|behind a big stone|in the tall grass].
{name} [gave {his} {relative} a big hug|laughed and jumped with joy|said thank you again and again].
[From that day on, {name} always put the {toy} back in its place.|{name} learned that it is good to ask for help.]
""",
    "stuck": """
{when}, {name} [walked|went] to {place} and heard a small voice.
"Help! Please help me!" it [cried|called].
[It was a little {other}.|There, {name} saw a little {other}.]
The {other} was stuck [in the mud|between two stones|under a fallen branch] and could not get out.
[{name} was not afraid.|{name} thought for a moment.|"Do not worry," said {name}.]
{He} [found a long stick and|took a deep breath and|called {his} {relative}, and together they] pulled [as hard as {he} could|and pulled|again and again] until the {other} was free.
["Thank you!" said the {other}. "You saved me."|"You are very kind," said the {other}. "I will never forget this."]
[After that, they met every day and played together.|From then on, {name} and the {other} were best friends.]
[{name} learned that even a small act of kindness can change a day.|{name} was tired, but {his} heart was full of joy.]
""",
    "share": """
{when}, {name} had a basket full of {fruits} and [went to {place}|sat down under a tree] to eat them.
[Soon|Just then], a hungry little {other} came by.
["I have not eaten all day," said the {other}.|"Could I have some, please?" asked the {other}.]
At first, {name} [wanted to keep all the {fruits}|did not want to share|held the basket close].
[But then {he} saw how sad the {other} looked.|Then {he} looked at the {other} and thought again.]
["Here, take half of them," said {name}.|"Of course. There is enough for two," said {name}.]
They sat [side by side|in the sun|together] and ate until the basket was empty.
The next day, the {other} came back with [a piece of {food}|a jar of honey|a bunch of flowers] for {name}.
[{name} smiled, because sharing had brought {him} a friend.|And so {name} learned that things taste better when you share them.]
""",
    "learn": """
{name} wanted to learn how to [swim|dance|sing|paint|ride a bicycle|play the flute].
[On the first day|The first time], {he} tried [very hard|and tried], but {he} could not do it.
["I will never be good at this," said {name}.|"This is too hard for me," {he} said.]
[{His} {relative} smiled and said, "Try a little every day."|"Everyone starts small," said {his} {relative}. "Do not give up."]
So {name} tried again the next day, and the day after that.
[Sometimes {he} made mistakes, but {he} did not stop.|It was not easy, but each day it went a little better.]
[At last|After many days|One bright morning], {name} could do it!
[{His} friends clapped and cheered.|{His} {relative} was very proud.|{He} laughed out loud and did it again.]
[{name} learned that you can do hard things when you do not give up.|From that day on, {name} was never afraid to try something new.]
""",
    "storm": """
One night, a big storm came. The wind [howled|blew hard] and the rain [fell on the roof|beat against the window].
{name} [was afraid|could not sleep|hid under the blanket].
Then {he} heard a soft sound at the door. [It was a wet little {other}.|There stood a little {other}, cold and wet.]
["Please let me in," said the {other}. "I am so cold."|"May I stay until the storm is over?" asked the {other}.]
[{name} opened the door and gave the {other} a warm blanket.|"Come in," said {name}, and {he} made some hot {drink}.]
They [told each other stories|sang songs|played a game] until [the storm was over|the wind grew quiet], and {name} was not afraid any more.
In the morning, the sun was shining and [a rainbow stood over {place}|the birds sang].
[{name} learned that fear grows small when you are not alone.|{name} and the {other} stayed friends for the rest of their lives.]
""",
    "honest": """
{when}, {name} was playing with a {colour} ball in the house.
[The ball hit a vase, and the vase broke.|The ball flew through the air and broke a cup.]
[{name} was scared.|{name} did not know what to do.] {He} [wanted to hide|thought about running away].
But {he} knew that it was better to tell the truth.
{He} went to {his} {relative} and said, "I am sorry. I broke it."
{His} {relative} [was quiet for a moment|looked at {him}]. Then {relative_he} smiled and said, "[Thank you for telling me the truth|It was brave of you to tell me]."
[Together they picked up the pieces|They cleaned the floor together], and then they [went outside to play|baked an apple pie|read a story].
{name} felt [much better|light and happy].
[{name} learned that telling the truth is always the best way.|After that, {name} always told the truth, and everyone trusted {him}.]
""",
    "friend": """
{name} [had no friends to play with|felt a little lonely], because {he} was new in the village.
[Every day|Each morning], {he} watched the others play near {place}, but {he} was too shy to [ask|speak].
One day, {he} saw a little {other} who [sat alone|looked sad too].
{name} took all {his} courage and said, "Hello, my name is {name}. Do you want to play with me?"
The {other} [smiled|jumped up] and said, "[Yes, I would love to|I was hoping that you would ask]!"
They [ran through the grass|played hide and seek|built a little house of sticks] until [the sun went down|it was time for dinner].
[The next day, the others came and played with them too.|Soon, the others wanted to play with them as well.]
[{name} was never lonely again.|{name} learned that a kind word is the start of a friendship.]
""",
    "seed": """
[One spring day|One day], {name} found a tiny seed [near {place}|on the path].
{He} [put it in the ground|planted it behind the house] and gave it some water.
["Grow, little seed," said {name}.|"When will it grow?" {he} asked {his} {relative}.]
["You have to be patient," said {his} {relative}.|{His} {relative} said, "Good things take time."]
[Every morning|Every day], {name} [gave it water and sang to it|looked at the ground and waited].
[The days went by, and nothing happened.|It rained, and the sun shone, but nothing happened.]
Then, one morning, {name} saw a small green leaf!
[The plant grew and grew|Week by week the plant grew], until it was [a tall {colour} flower|a tree full of {fruits}].
[Everyone came to see it, and {name} was very proud.|{name} shared it with all {his} friends.]
[{name} learned that good things come to those who wait.|And {name} never forgot to be patient.]
""",
    "birthday": """
It was the birthday of {name}'s {relative}, and {name} wanted to make a surprise.
[{He} had no money|{He} could not buy a present], so {he} [thought for a long time|asked a {other} for help].
[Then {he} had an idea.|At last {he} had an idea.]
{He} went to {place} and picked [the most beautiful flowers|a basket of {fruits}].
[Then {he} baked a small cake|Then {he} painted a picture] and [hid it in the kitchen|put it on the table].
When {his} {relative} came home, {name} called, "Surprise!"
{His} {relative} [laughed|had tears of joy] and said, "This is the best present of all."
They [ate cake|danced and sang] until [it was late|the stars came out].
[{name} learned that a gift from the heart is worth more than gold.|That night, {name} went to bed with a big smile.]
""",
    "owner": """
{when}, {name} found a golden [ring|key|coin] [on the road to {place}|near {place}].
It was [bright and beautiful|shining in the sun], and {name} wanted to keep it.
But then {he} met an old [woman|man] who was looking for something.
["What did you lose?" asked {name}.|"Can I help you?" asked {name}.]
"[I lost something that my mother gave me|I lost something very dear to me]," came the answer. "It is made of gold."
{name} [thought for a moment|looked at {his} hand]. Then {he} said, "Is this yours? I found it [today|on the road]."
["Yes! Thank you, dear friend!"|"Oh, you have made me so happy!"]
As a thank you, {name} got [a {colour} {toy}|a warm apple pie|a bag of {fruits}].
[{name} went home with a light heart.|{name} ran home and told {his} {relative} everything.]
[{He} learned that being honest brings its own reward.|{He} knew that {he} had done the right thing.]
""",
    "race": """
{when}, a proud {other} said, "I am the fastest of all. Nobody can beat me!"
["I will race you," said {name}.|{name} was tired of hearing this. "Let us race to {place}," {he} said.]
[Everyone laughed, because {name} was so small.|Nobody thought that {name} could win.]
They started in the morning, and soon the {other} was far ahead.
["I have time for a nap," said the {other}, and lay down under a tree.|The {other} stopped to eat some {fruits} and fell asleep.]
But {name} [went on, step by step|did not stop] and [never looked back|passed the sleeping {other}].
When the {other} woke up, {name} was already [at the end|there]. [Everyone cheered!|The friends of {name} cheered!]
["You ran a good race," said the {other}. "I will not be so proud again."|The {other} said sorry, and they shook hands.]
[{name} learned that slow and steady wins the race.|And so {name} showed that it is better to go on than to boast.]
""",
    "night": """
{name} [loved to look at the stars|liked the night more than the day].
One night, {he} saw a little star fall [behind {place}|from the sky].
{He} put on {his} {colour} coat and went to look for it.
[On the way, {he} met a {other} who wanted to come along.|A {other} heard {him} and came along.]
[They walked through the dark, and the {other} told jokes so that nobody was afraid.|It was dark, but together they were not afraid.]
At last they found the star, small and cold [in the grass|beside a stone].
["I want to go home," said the star.|"Please help me to get home," said the star.]
{name} [held it up as high as {he} could|blew on it softly], and the star [flew back into the sky|rose up and up].
Since then, one star shines brighter than all the others [when {name} goes to bed|for {name} and the {other}].
[And {name} knows that no one is too small to help.|{name} waves to it every night.]
""",
}

# An opening, its weight, and whether it leaves it to the plot to state the time.
OPENINGS = (
    ("Once upon a time, there was a {adjective} {kind} named {name}.", 6, True),
    ("Once upon a time, there was a {adjective} {kind} named {name}. {He} lived near {home}.", 3, True),
    ("Once upon a time, a {adjective} {kind} named {name} lived near {home}.", 3, True),
    ("Once upon a time, in a house near {home}, there lived a {adjective} {kind} named {name}.", 3, True),
    ("Once upon a time there was a {adjective} {kind} named {name}.", 1, True),
    ("Once upon a time, there lived a {adjective} {kind} called {name}.", 2, True),
    ("Long ago, a {adjective} {kind} named {name} lived near {home}.", 2, True),
    ("There once was a {adjective} {kind} named {name}.", 2, True),
    ("{name} was a {adjective} {kind} who lived near {home}.", 2, True),
    ("One day, a {adjective} {kind} named {name} went to {home} with {his} {relative}.", 4, False),
    ("One day, a {adjective} {kind} named {name} woke up early and looked out of the window.", 1, False),
)
TRAITS = (
    "{He} loved to [play outside|sing|read books|draw|tell stories].",
    "{He} was very {trait} and [always had a smile|liked to help others].",
    "Everyone [liked|loved] {name}, because {he} was so {trait}.",
    "{name} lived with {his} {relative} in a [small|little] house.",
)
# The plots that continue from "One day, ..." within the same day.
SAME_DAY_PLOTS = ("stuck", "share", "owner", "race")


def draw_story(rng: random.Random, kind: str | None = None, name: str | None = None) -> str:
    """Draw a whole story as one paragraph; about the `kind` named `name` if they are given."""
    slots = _draw_slots(rng)
    if kind and name:
        slots |= _character(kind, name)
        slots["other"] = _other_animal(kind, rng)
    openings = OPENINGS[:6] if kind else OPENINGS
    opening, _, is_open = rng.choices(openings, [weight for _, weight, _ in openings])[0]
    plot = rng.choice(list(PLOTS) if is_open else SAME_DAY_PLOTS)
    slots["when"] = rng.choice(WHEN if is_open else WHEN_SAME_DAY)
    sentences = [opening]
    if is_open and rng.random() < 0.5:
        sentences.append(rng.choice(TRAITS))
    sentences += PLOTS[plot].strip().splitlines()
    return " ".join(expand(sentence, rng).format(**slots) for sentence in sentences)


def draw_document(rng: random.Random) -> Document:
    return Document("story", "", draw_story(rng))


def exchange(rng: random.Random) -> Exchange:
    """Draw a request for a story and the story as the assistant's answer."""
    kind, name = _draw_character(rng)
    questions = (
        rng.choice(("Tell me a story.", "Tell me a short story.", "Can you tell me a story?")),
        f"Tell me a story about a {kind}.",
        f"Tell me a story about a {kind} named {name}.",
    )
    return Exchange(rng.choice(questions), draw_story(rng, kind, name))


def _draw_character(rng: random.Random) -> tuple[str, str]:
    is_girl = rng.random() < 0.5
    kind = rng.choice(["girl" if is_girl else "boy"] * 5 + ANIMALS[:9])
    return kind, rng.choice(GIRLS if is_girl else BOYS)


def _character(kind: str, name: str) -> dict[str, str]:
    he, his, him = ("she", "her", "her") if name in GIRLS else ("he", "his", "him")
    return {
        "kind": kind, "name": name, "he": he, "his": his, "him": him, "He": he.title(), "His": his.title(),
    }  # fmt: skip


def _other_animal(kind: str, rng: random.Random) -> str:
    return rng.choice([animal for animal in ANIMALS if animal != kind])


def _draw_slots(rng: random.Random) -> dict[str, str]:
    kind, name = _draw_character(rng)
    relative = rng.choice(list(RELATIVES))
    home, place = rng.sample(PLACES, 2)
    return _character(kind, name) | {
        "relative": relative, "relative_he": RELATIVES[relative], "home": home, "place": place,
        "adjective": rng.choice(["little", "little", "young", *CHARACTER]), "trait": rng.choice(CHARACTER),
        "colour": rng.choice(COLOURS), "toy": rng.choice(TOYS), "food": rng.choice(FOODS),
        "drink": rng.choice(["tea", "milk", "soup"]), "fruits": rng.choice(FRUITS),
        "other": _other_animal(kind, rng),
    }  # fmt: skip
