"""Short English phrases and their German translations, from a small lexicon and the rules of German grammar.

Knows articles, genders, cases, plurals and adjective endings; knows nothing about how training uses prompts.
The hold-out rule applies to combinations: adjective and noun, or subject, verb and object.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

from .documents import Document, Exchange
from .holdout import any_held_out


@dataclass(frozen=True)
class Noun:
    """A noun with its English and German forms, its gender and its class, as in `NOUN_LINES`."""

    english: str
    english_plural: str
    german: str
    german_plural: str
    gender: str
    kind: str
    german_accusative: str


# Gender (m, f, n) and class (p for a person, a for an animal, t for a thing), then the forms.
NOUN_LINES = """
mp man men Mann Männer | mp king kings König Könige | mp brother brothers Bruder Brüder
mp friend friends Freund Freunde | mp father fathers Vater Väter | mp boy boys Junge Jungen Jungen
ma dog dogs Hund Hunde | ma bird birds Vogel Vögel | mt tree trees Baum Bäume | mt apple apples Apfel Äpfel
mt table tables Tisch Tische | mt garden gardens Garten Gärten | mt ball balls Ball Bälle
mt chair chairs Stuhl Stühle | mt star stars Stern Sterne
fp woman women Frau Frauen | fp mother mothers Mutter Mütter | fp sister sisters Schwester Schwestern
fa cat cats Katze Katzen | fa mouse mice Maus Mäuse | fa cow cows Kuh Kühe | ft flower flowers Blume Blumen
ft school schools Schule Schulen | ft door doors Tür Türen | ft lamp lamps Lampe Lampen
ft city cities Stadt Städte | ft street streets Straße Straßen | ft cup cups Tasse Tassen
np child children Kind Kinder | np girl girls Mädchen Mädchen | na horse horses Pferd Pferde
na animal animals Tier Tiere | nt house houses Haus Häuser | nt book books Buch Bücher
nt car cars Auto Autos
nt picture pictures Bild Bilder | nt room rooms Zimmer Zimmer | nt window windows Fenster Fenster
nt ship ships Schiff Schiffe | nt egg eggs Ei Eier | nt bed beds Bett Betten | nt song songs Lied Lieder
"""

# English to the German stem that takes an ending, the form after "is", and the classes of noun it goes with.
ADJECTIVES = {
    "big": ("groß", "groß", "pat"), "small": ("klein", "klein", "pat"), "old": ("alt", "alt", "pat"),
    "good": ("gut", "gut", "pat"), "beautiful": ("schön", "schön", "pat"), "young": ("jung", "jung", "pa"),
    "fast": ("schnell", "schnell", "pa"), "tired": ("müd", "müde", "pa"),
    "happy": ("glücklich", "glücklich", "pa"),
    "red": ("rot", "rot", "at"), "green": ("grün", "grün", "at"), "blue": ("blau", "blau", "at"),
    "white": ("weiß", "weiß", "at"), "black": ("schwarz", "schwarz", "at"), "new": ("neu", "neu", "t"),
    "warm": ("warm", "warm", "t"),
}  # fmt: skip

# English third person and base form; German third person singular, first person singular, plural.
VERBS = {
    "sees": ("see", "sieht", "sehe", "sehen"), "likes": ("like", "mag", "mag", "mögen"),
    "finds": ("find", "findet", "finde", "finden"), "has": ("have", "hat", "habe", "haben"),
    "buys": ("buy", "kauft", "kaufe", "kaufen"), "loves": ("love", "liebt", "liebe", "lieben"),
    "needs": ("need", "braucht", "brauche", "brauchen"), "paints": ("paint", "malt", "male", "malen"),
}  # fmt: skip

# English subject pronoun to the German one and the index of its verb form in VERBS.
PRONOUNS = {"I": ("ich", 2), "we": ("wir", 3), "he": ("er", 1), "she": ("sie", 1)}

# Nominative m, f, n and accusative m, f, n of each determiner, and its plural; None if it has none.
DETERMINERS = {
    "the": (("der", "die", "das"), ("den", "die", "das"), "die"),
    "this": (("dieser", "diese", "dieses"), ("diesen", "diese", "dieses"), None),
    "a": (("ein", "eine", "ein"), ("einen", "eine", "ein"), None),
    "my": (("mein", "meine", "mein"), ("meinen", "meine", "mein"), "meine"),
    "your": (("dein", "deine", "dein"), ("deinen", "deine", "dein"), "deine"),
    "two": (None, None, "zwei"),
    "three": (None, None, "drei"),
}

FIXED = {
    "good morning": "guten Morgen", "good evening": "guten Abend", "good night": "gute Nacht",
    "thank you": "danke",
    "hello": "hallo", "please": "bitte", "goodbye": "auf Wiedersehen", "yes": "ja", "no": "nein",
    "how are you": "wie geht es dir", "I love you": "ich liebe dich", "see you tomorrow": "bis morgen",
    "one": "eins", "two": "zwei", "three": "drei", "four": "vier", "five": "fünf", "six": "sechs",
    "seven": "sieben", "eight": "acht", "nine": "neun", "ten": "zehn",
}  # fmt: skip


@dataclass(frozen=True)
class Phrase:
    """A phrase in both languages, and the combinations that it contains."""

    english: str
    german: str
    combinations: tuple[tuple[str, ...], ...] = ()
    is_sentence: bool = False

    @property
    def is_held_out(self) -> bool:
        return any_held_out(self.combinations)


@cache
def nouns() -> tuple[Noun, ...]:
    entries = [entry.split() for line in NOUN_LINES.strip().splitlines() for entry in line.split("|")]
    return tuple(_noun(*entry) for entry in entries)


def _noun(mark: str, english: str, english_plural: str, german: str, german_plural: str, accusative: str = "") -> Noun:
    return Noun(english, english_plural, german, german_plural, *mark, accusative or german)


@dataclass(frozen=True)
class NounPhrase:
    """A determiner, an optional adjective, and a noun in the singular or plural."""

    determiner: str
    adjective: str | None
    noun: Noun
    plural: bool

    @property
    def english(self) -> str:
        words = [self.adjective] if self.adjective else []
        words.append(self.noun.english_plural if self.plural else self.noun.english)
        determiner = "an" if self.determiner == "a" and words[0][0] in "aeiou" else self.determiner
        return " ".join([determiner, *words])

    def german(self, accusative: bool = False) -> str:
        nominative_forms, accusative_forms, plural_form = DETERMINERS[self.determiner]
        gender = "mfn".index(self.noun.gender)
        forms = accusative_forms if accusative else nominative_forms
        words = [plural_form if self.plural else forms[gender]]
        if self.adjective:
            words.append(ADJECTIVES[self.adjective][0] + self._ending(accusative))
        singular = self.noun.german_accusative if accusative else self.noun.german
        words.append(self.noun.german_plural if self.plural else singular)
        return " ".join(words)

    def _ending(self, accusative: bool) -> str:
        """Return the adjective's ending: strong after a number, weak after der/dieser, mixed after ein/mein."""
        if self.plural:
            return "e" if self.determiner in ("two", "three") else "en"
        if accusative and self.noun.gender == "m":
            return "en"
        if self.noun.gender == "f" or self.determiner in ("the", "this"):
            return "e"
        return "er" if self.noun.gender == "m" else "es"

    @property
    def combinations(self) -> tuple[tuple[str, ...], ...]:
        return ((self.adjective, self.noun.english),) if self.adjective else ()


def _draw_noun_phrase(rng: random.Random, adjective: bool, kinds: str = "pat") -> NounPhrase:
    """Draw a random noun phrase whose noun has one of the classes in `kinds`."""
    noun = rng.choice([noun for noun in nouns() if noun.kind in kinds])
    determiner = rng.choices(tuple(DETERMINERS), (9, 2, 6, 3, 2, 1, 1))[0]
    singular, _, plural = DETERMINERS[determiner]
    is_plural = plural is not None and (singular is None or rng.random() < 0.25)
    return NounPhrase(determiner, _draw_adjective(rng, noun) if adjective else None, noun, is_plural)


def _draw_adjective(rng: random.Random, noun: Noun) -> str:
    return rng.choice([english for english, (_, _, kinds) in ADJECTIVES.items() if noun.kind in kinds])


def _draw_noun_pair(rng: random.Random) -> Phrase:
    first, second = _draw_noun_phrase(rng, False), _draw_noun_phrase(rng, False)
    return Phrase(
        f"{first.english} and {second.english}",
        f"{first.german()} und {second.german()}",
        ((first.noun.english, "and", second.noun.english),),
    )


def _draw_description(rng: random.Random) -> Phrase:
    subject = _draw_noun_phrase(rng, False)
    adjective = _draw_adjective(rng, subject.noun)
    english, german = ("are", "sind") if subject.plural else ("is", "ist")
    return Phrase(
        f"{subject.english} {english} {adjective}",
        f"{subject.german()} {german} {ADJECTIVES[adjective][1]}",
        ((adjective, subject.noun.english),),
        True,
    )


def _draw_action(rng: random.Random) -> Phrase:
    """Draw a subject, verb and object; the subject is sometimes a pronoun."""
    verb = rng.choice(tuple(VERBS))
    thing = _draw_noun_phrase(rng, rng.random() < 0.4, "at" if verb == "buys" else "pat")
    if rng.random() < 0.3:
        subject_english = rng.choice(tuple(PRONOUNS))
        subject_german, form = PRONOUNS[subject_english]
        key, combinations = subject_english, thing.combinations
    else:
        subject = _draw_noun_phrase(rng, rng.random() < 0.2, "pa")
        subject_english, subject_german = subject.english, subject.german()
        form = 3 if subject.plural else 1
        key, combinations = subject.noun.english, thing.combinations + subject.combinations
    return Phrase(
        f"{subject_english} {verb if form == 1 else VERBS[verb][0]} {thing.english}",
        f"{subject_german} {VERBS[verb][form]} {thing.german(accusative=True)}",
        (*combinations, (key, verb, thing.noun.english)),
        True,
    )


def _draw_noun_phrase_alone(rng: random.Random) -> Phrase:
    phrase = _draw_noun_phrase(rng, rng.random() < 0.8)
    return Phrase(phrase.english, phrase.german(), phrase.combinations)


def draw_phrase(rng: random.Random, held_out: bool = False) -> Phrase:
    """Draw a random phrase that is held out, or one that is not."""
    makers = (_draw_noun_phrase_alone, _draw_noun_pair, _draw_description, _draw_action)
    while True:
        if not held_out and rng.random() < 0.02:
            return Phrase(*rng.choice(list(FIXED.items())))
        phrase = rng.choices(makers, (40, 8, 15, 37))[0](rng)
        if phrase.is_held_out == held_out:
            return phrase


def worded(phrase: Phrase, rng: random.Random) -> Phrase:
    """Return the phrase unchanged, capitalized, or (for a sentence) capitalized with a period."""
    chance = rng.random()
    if chance < 0.65:
        return phrase
    stop = "." if phrase.is_sentence and chance < 0.9 else ""
    english, german = (text[0].upper() + text[1:] + stop for text in (phrase.english, phrase.german))
    return Phrase(english, german, phrase.combinations, phrase.is_sentence)


def completion(phrase: Phrase) -> Document:
    """The main form: `Translate to German: the big house` and the answer ` das große Haus`."""
    return Document("translation", f"Translate to German: {phrase.english}", f" {phrase.german}")


def draw_document(rng: random.Random, held_out: bool = False) -> Document:
    phrase = worded(draw_phrase(rng, held_out), rng)
    if rng.random() < 0.85:
        return completion(phrase)
    return Document("translation", f"Translate to English: {phrase.german}", f" {phrase.english}")


def exchange(phrase: Phrase, rng: random.Random) -> Exchange:
    """Format a phrase as a question to an assistant."""
    phrase = worded(phrase, rng)
    to_german = (
        f"Translate to German: {phrase.english}",
        f"Translate to German: {phrase.english}",
        f'What is "{phrase.english}" in German?',
        f'How do you say "{phrase.english}" in German?',
    )
    if rng.random() < 0.85:
        return Exchange(rng.choice(to_german), phrase.german)
    return Exchange(f"Translate to English: {phrase.german}", phrase.english)
