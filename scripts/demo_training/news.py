"""Very short news items, made from templates, and a headline that summarizes each.

Square brackets list alternatives, braces name a slot, as in `stories`. A line that starts with `?` is optional.
The headline contains words of several sentences; sometimes it must state who won. Knows nothing about tokens.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from .holdout import is_held_out
from .templates import expand

WOMEN = ("Anna", "Clara", "Ella", "Emma", "Grace", "Julia", "Lily", "Lucy", "Mia", "Nora", "Rosa", "Sophie")
MEN = ("Adam", "Ben", "Finn", "Henry", "Jack", "Leo", "Luke", "Max", "Oscar", "Paul", "Peter", "Tom")
TOWNS = (
    "Ashford", "Bridgeton", "Clayton", "Dunmore", "Eastwick", "Fairview", "Greenfield", "Hillside", "Kingsport",
    "Lakewood", "Milltown", "Northgate", "Oakdale", "Redhill", "Silverton", "Westbrook",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
JOBS = ("baker", "farmer", "teacher", "doctor", "nurse", "driver", "painter", "singer", "gardener", "fisher")
ADJECTIVES = ("golden", "silver", "rare", "old", "precious", "beautiful")
ITEMS = ("ring", "coin", "clock", "picture", "letter", "necklace", "sword", "map", "book", "cup")
SPOTS = ("park", "forest", "river", "garden", "lake", "harbour", "market", "old mill", "station", "cellar")
BUILDINGS = ("school", "library", "museum", "hospital", "bridge", "swimming pool", "theatre", "market hall", "station")
WEATHER = ("heavy rain", "strong wind", "deep snow", "thick fog", "a storm", "a flood")
CONTESTS = ("baking contest", "chess tournament", "singing contest", "spelling contest", "boat race", "dance contest")
ANIMALS = ("cow", "goat", "horse", "parrot", "cat", "dog", "sheep", "donkey", "turtle", "rabbit")
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

# The news item, followed by `=>` and the headline.
NEWS = {
    "find": """
[{name}, a {job} from {town}, found|On {day}, {name}, a {job} from {town}, found|A {job} from {town} found] a {adjective} {item} [in|near] the {spot}.
[{He} gave it to the police.|{He} brought it to the museum.|It had been lost for {number} years.]
?[The owner was very happy.|Nobody knows whose it is.|It is worth a lot of money.]
=> {Job} from {town} finds {adjective} {item}
""",
    "weather": """
[{Weather} came to {town} on {day}.|On {day}, there was {weather} in {town}.|{town} had {weather} on {day}.]
[The {building} had to close for {number} days.|Because of it, the {building} was closed.|The {building} will stay closed until {day}.]
?[Nobody was hurt.|Many people stayed at home.|It was the worst in {number} years.]
=> {Weather_bare} closes {building} in {town}
""",
    "contest": """
[On {day}, many people came to the {contest} in {town}.|The {contest} took place in {town} on {day}.|{town} held its {contest} on {day}.]
[The winner was {name}, a {job}.|{name}, a {job}, won it.|{name}, who is a {job}, took first place.|In the end, {name} won.]
?[{He} got a {adjective} cup.|"I am so happy," {he} said.|It was {his} {order} try.]
=> {name} wins {contest} in {town}
""",
    "opening": """
[{town} has a new {building}.|There is a new {building} in {town}.|The people of {town} waited {number} years for a new {building}.]
[It opened on {day}.|The doors opened on {day}.|On {day}, it was opened at last.]
?[{name} was the first to go in.|Many people came to see it.|There was music and cake for all.]
=> New {building} opens in {town}
""",
    "plan": """
[{town} needs a {building}.|The old {building} in {town} is too small.|{town} has no good {building}.]
[Now the town wants to build a new one.|So a new one will be built next year.|Work on a new one will start on {day}.]
?[It will cost {number} million.|{name} drew the plans.|It should be ready in {number} years.]
=> {town} plans new {building}
""",
    "pet": """
[A {animal} ran away from its home in {town} on {day}.|In {town}, a {animal} had been missing for {number} days.|On {day}, {name}'s {animal} got lost in {town}.]
[It was found near the {spot}.|A {job} found it near the {spot}.|A boy saw it near the {spot} and brought it back.]
?[It was hungry but well.|Everybody was glad.|It had only wanted to play.]
=> Lost {animal} found near {spot} in {town}
""",
    "match": """
{town} played against {other_town} on {day}.
[{winner} won {high} to {low}.|{winner} won by {high} goals to {low}.|It was {low} to {high} in the end, and {winner} won.]
?[{name} scored the last goal.|It rained all the time.|The fans were very loud.]
=> {winner} beats {loser}
""",
    "move": """
[{name} has been the {job} of {town} for {number} years.|For {number} years, {name} was a {job} in {town}.|{name} is a {job} in {town}.]
[Now {he} will move to {other_town}.|Next {day}, {he} moves to {other_town}.|Soon {he} will live in {other_town}.]
?["I will miss you all," {he} said.|{His} friends are sad.|There was a big party on {day}.]
=> {name} moves from {town} to {other_town}
""",
    "theft": """
[On {day}, somebody took a {adjective} {item} from the {building} in {town}.|A {adjective} {item} was stolen from the {building} in {town}.|A thief came to the {building} in {town} and took a {adjective} {item}.]
[The police are looking for it.|The police have no idea who it was.|{name}, who works there, called the police.]
?[It was {number} hundred years old.|The thief came at night.|A window was broken.]
=> {Adjective} {item} stolen from {building} in {town}
""",
    "rescue": """
[A {animal} fell into the water in {town} on {day}.|On {day}, a {animal} was stuck on a roof in {town}.|A {animal} could not get out of a hole in {town}.]
[{name}, a {job}, heard it and helped.|Luckily, a {job} named {name} came by and got it out.|{name}, a {job}, saved it.]
?[The {animal} is well.|It took {number} hours.|"It was nothing," {he} said.]
=> {Job} saves {animal} in {town}
""",
}  # fmt: skip


@dataclass(frozen=True)
class Report:
    """Two or three sentences, and their headline."""

    text: str
    headline: str

    @property
    def is_held_out(self) -> bool:
        return is_held_out("headline", self.headline)


def draw_report(rng: random.Random, held_out: bool = False) -> Report:
    """Draw a random report whose headline is held out, or one whose headline is not."""
    while True:
        report = _draw(rng)
        if report.is_held_out == held_out:
            return report


def _draw(rng: random.Random) -> Report:
    text, headline = NEWS[rng.choice(tuple(NEWS))].strip().split("\n=> ")
    slots = _draw_slots(rng)
    lines = [line for line in text.splitlines() if not line.startswith("?") or rng.random() < 0.6]
    sentences = [expand(line.removeprefix("?"), rng).format(**slots) for line in lines]
    return Report(" ".join(map(_with_article, sentences)), headline.format(**slots))


def _with_article(sentence: str) -> str:
    """Use `an` before a vowel."""
    words = sentence.split(" ")
    for index, word in enumerate(words[:-1]):
        if word in ("a", "A") and words[index + 1][0] in "aeio":
            words[index] = word + "n"
    return " ".join(words)


def _draw_slots(rng: random.Random) -> dict[str, str]:
    is_woman = rng.random() < 0.5
    name = rng.choice(WOMEN if is_woman else MEN)
    he, his = ("she", "her") if is_woman else ("he", "his")
    town, other_town = rng.sample(TOWNS, 2)
    winner, loser = rng.sample((town, other_town), 2)
    high = rng.randrange(1, len(NUMBERS))
    job, adjective, weather = rng.choice(JOBS), rng.choice(ADJECTIVES), rng.choice(WEATHER)
    return {
        "name": name, "he": he, "He": he.title(), "his": his, "His": his.title(),
        "town": town, "other_town": other_town, "winner": winner, "loser": loser,
        "day": rng.choice(DAYS), "job": job, "Job": job.title(), "number": rng.choice(NUMBERS),
        "adjective": adjective, "Adjective": adjective.title(), "item": rng.choice(ITEMS), "spot": rng.choice(SPOTS),
        "building": rng.choice(BUILDINGS), "contest": rng.choice(CONTESTS), "animal": rng.choice(ANIMALS),
        "weather": weather, "Weather": weather.capitalize(), "Weather_bare": weather.removeprefix("a ").capitalize(),
        "high": NUMBERS[high], "low": NUMBERS[rng.randrange(high)], "order": rng.choice(("first", "second", "third")),
    }  # fmt: skip
