"""Questions with answers that can be checked, and other things to talk about: what chats are tested and taught with.

`tested()` has short questions, each with a pattern that a right answer holds. `taught()` has what a teacher is asked to
write about for its students: other questions and other tasks; what is like a tested one is left out by
`edgeforge generate` (near-duplicates by runs of words).

    python -m benchmarks.smollm2.prompts --out data/smollm2
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "China": "Beijing",
    "Russia": "Moscow", "Egypt": "Cairo", "Greece": "Athens", "Portugal": "Lisbon", "Poland": "Warsaw",
    "Austria": "Vienna", "Sweden": "Stockholm", "Norway": "Oslo", "Finland": "Helsinki", "Ireland": "Dublin",
    "India": "Delhi", "Cuba": "Havana", "Peru": "Lima", "Canada": "Ottawa", "Mexico": "Mexico City",
    "England": "London", "Hungary": "Budapest", "Belgium": "Brussels", "Thailand": "Bangkok", "Kenya": "Nairobi",
    "Argentina": "Buenos Aires", "Chile": "Santiago", "the Netherlands": "Amsterdam", "Denmark": "Copenhagen",
}  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small|little|tiny", "up": "down", "day": "night", "happy": "sad|unhappy", "fast": "slow",
    "old": "young|new", "light": "dark|heavy", "open": "close|shut", "early": "late", "rich": "poor", "strong": "weak",
    "high": "low", "wet": "dry", "full": "empty", "left": "right", "good": "bad|evil", "love": "hate", "black": "white",
    "true": "false",
}  # fmt: skip
FACTS = {
    "How many days are there in a week?": r"7|[Ss]even",
    "How many months are there in a year?": r"12|[Tt]welve",
    "How many hours are there in a day?": r"24|[Tt]wenty-four",
    "How many minutes are there in an hour?": r"60|[Ss]ixty",
    "How many legs does a spider have?": r"8|[Ee]ight",
    "How many legs does a dog have?": r"4|[Ff]our",
    "How many sides does a triangle have?": r"3|[Tt]hree",
    "How many continents are there?": r"7|[Ss]even",
    "What is the first month of the year?": r"January",
    "What is the last month of the year?": r"December",
    "What day comes after Monday?": r"Tuesday",
    "What day comes after Friday?": r"Saturday",
    "What colour is the sky on a clear day?": r"[Bb]lue",
    "What colour is grass?": r"[Gg]reen",
    "What colour is snow?": r"[Ww]hite",
    "What colour is a ripe banana?": r"[Yy]ellow",
    "What planet do we live on?": r"Earth",
    "What is the largest planet in our solar system?": r"Jupiter",
    "Which planet is known as the Red Planet?": r"Mars",
    "Which star is at the centre of our solar system?": r"[Ss]un",
    "What is the largest ocean on Earth?": r"Pacific",
    "What is the longest river in the world?": r"Nile|Amazon",
    "What is the highest mountain in the world?": r"Everest",
    "What is the largest animal in the world?": r"whale",
    "What is the fastest animal on land?": r"[Cc]heetah",
    "What is the tallest animal in the world?": r"[Gg]iraffe",
    "Which animal is called the king of the jungle?": r"[Ll]ion",
    "What do bees make?": r"[Hh]oney",
    "What do cows give us to drink?": r"[Mm]ilk",
    "What is frozen water called?": r"[Ii]ce",
    "At what temperature in Celsius does water boil?": r"100",
    "At what temperature in Celsius does water freeze?": r"\b0\b|[Zz]ero",
    "What is the chemical formula of water?": r"H2O|H₂O",
    "What gas do humans need to breathe?": r"[Oo]xygen",
    "What gas do plants take in from the air?": r"[Cc]arbon dioxide|CO2|CO₂",
    "What is the chemical symbol of gold?": r"\bAu\b",
    "Who wrote Romeo and Juliet?": r"Shakespeare",
    "Who wrote Hamlet?": r"Shakespeare",
    "Who painted the Mona Lisa?": r"Vinci|Leonardo",
    "Who developed the theory of relativity?": r"Einstein",
    "Who discovered gravity after seeing an apple fall?": r"Newton",
    "Who was the first president of the United States?": r"Washington",
    "Who was the first person to walk on the Moon?": r"Armstrong",
    "Who invented the telephone?": r"Bell",
    "Who is the author of Harry Potter?": r"Rowling",
    "Who wrote Pride and Prejudice?": r"Austen",
    "In which country is the Eiffel Tower?": r"France|Paris",
    "In which country are the pyramids of Giza?": r"Egypt",
    "In which country is the Great Wall?": r"China",
    "On which continent is Egypt?": r"Africa",
    "On which continent is Brazil?": r"South America",
    "Which language is spoken in France?": r"French",
    "Which language is spoken in Spain?": r"Spanish",
    "Which language is spoken in Germany?": r"German",
    "Which language is spoken in Brazil?": r"Portuguese",
    "What is the currency of Japan?": r"[Yy]en",
    "What is the currency of the United Kingdom?": r"[Pp]ound",
    "What is the currency of the United States?": r"[Dd]ollar",
    "What organ pumps blood through the body?": r"[Hh]eart",
    "Which sense do we use our eyes for?": r"[Ss]ight|[Ss]ee|[Vv]i",
    "What is a baby dog called?": r"[Pp]upp",
    "What is a baby cat called?": r"[Kk]itten",
    "What is the plural of child?": r"[Cc]hildren",
    "What is the plural of mouse?": r"[Mm]ice",
    "What is the past tense of go?": r"went",
    "What is the past tense of eat?": r"ate\b",
    "Translate hello into Spanish.": r"[Hh]ola",
    "Translate thank you into French.": r"[Mm]erci",
    "What is the first letter of the English alphabet?": r"\bA\b|\ba\b",
    "What season comes after winter?": r"[Ss]pring",
    "What is the square root of 9?": r"\b3\b|[Tt]hree",
    "What is 2 + 2?": r"\b4\b|[Ff]our",
    "What is 5 + 3?": r"\b8\b|[Ee]ight",
    "What is 10 - 4?": r"\b6\b|[Ss]ix",
    "What is 3 times 3?": r"\b9\b|[Nn]ine",
    "What is 10 divided by 2?": r"\b5\b|[Ff]ive",
}

TOPICS = (
    "a rainy afternoon", "the sea in winter", "a train journey", "a small village", "an old clock", "a lost letter",
    "a garden in spring", "the city at night", "a long walk home", "a broken bicycle", "a market on a Saturday",
    "a bridge over a river", "a quiet library", "an unexpected guest", "a kitchen full of steam", "a storm at sea",
    "a letter to a friend", "the first day at school", "a dog that waits", "a lighthouse keeper", "a music lesson",
    "a forest path", "a birthday without cake", "a mountain hut", "the last bus", "a painter's studio",
    "a game of chess", "a ship in a bottle", "a forgotten key", "a summer holiday",
)  # fmt: skip
THINGS = (
    "photosynthesis", "gravity", "a computer program", "an earthquake", "the water cycle", "a democracy", "electricity",
    "a vaccine", "the moon's phases", "inflation", "evolution", "a magnet", "the internet", "a volcano", "recycling",
    "a telescope", "the heart", "sound", "a contract", "an ecosystem", "a battery", "the seasons", "yeast", "an atom",
    "a library", "a compass", "friction", "a search engine", "a bank account", "a parliament", "rust", "a rainbow",
    "sleep", "a solar panel", "a bicycle's gears", "the tides", "a poem", "an algorithm", "a budget", "a virus",
)  # fmt: skip
WORDS = (
    "bread", "window", "honest", "river", "careful", "teacher", "mountain", "gentle", "engine", "market", "brave",
    "paper", "silver", "quick", "garden", "winter", "promise", "shadow", "bright", "travel", "kitchen", "island",
    "silent", "basket", "doctor", "letter", "forest", "hammer", "curious", "blanket",
)  # fmt: skip
OTHER_CAPITALS = (
    "Turkey", "Vietnam", "Iran", "Iraq", "Morocco", "Nigeria", "Ethiopia", "Colombia", "Venezuela", "Ecuador",
    "Romania", "Bulgaria", "Serbia", "Croatia", "Ukraine", "Switzerland", "Iceland", "Pakistan", "Bangladesh",
    "Indonesia", "Malaysia", "the Philippines", "South Korea", "Australia", "New Zealand", "Brazil", "Bolivia",
    "Jamaica", "Ghana", "South Africa",
)  # fmt: skip
OTHER_QUESTIONS = (
    "How many seconds are there in a minute?", "How many wheels does a car have?", "How many strings has a violin?",
    "How many players are in a football team?", "What month comes after March?", "What day comes before Sunday?",
    "What colour is a tomato?", "What colour are most leaves in summer?", "What is the smallest planet?",
    "Which ocean lies between Europe and America?", "Which bird cannot fly and lives in Antarctica?",
    "What do sheep give us for clothes?", "What is melted rock called?", "What is the chemical symbol of iron?",
    "Which gas makes balloons float?", "Who wrote Don Quixote?", "Who composed the Ninth Symphony?",
    "Who discovered penicillin?", "Who was the first woman to win a Nobel Prize?", "In which country is the Taj Mahal?",
    "On which continent is Japan?", "Which language is spoken in Italy?", "What is the currency of India?",
    "What organ do we breathe with?", "What is a baby horse called?", "What is the plural of tooth?",
    "What is the past tense of write?", "Translate good night into Italian.", "What is 7 + 6?", "What is 20 - 8?",
    "What is 4 times 5?", "What is 12 divided by 3?", "What is half of 50?", "Name three fruits.", "Name three rivers.",
    "Name two primary colours.", "Which is heavier, a kilogram of iron or a gram of gold?",
    "What do you call a house made of snow?", "What do we call the study of stars?",
    "What is it called when water boils?",
)  # fmt: skip


def tested() -> list[dict[str, Any]]:
    """`{"messages": [...], "pattern": ...}` of every tested question."""
    pairs = {f"What is the capital of {country}?": city for country, city in CAPITALS.items()}
    pairs |= {f"What is the opposite of {word}?": rf"(?i)\b({opposite})" for word, opposite in OPPOSITES.items()}
    pairs |= FACTS
    return [{**asked(question), "pattern": pattern} for question, pattern in pairs.items()]


def taught() -> list[dict[str, Any]]:
    """`{"messages": [...]}` of everything else that a teacher is asked."""
    questions = [f"Tell me the capital city of {country}." for country in OTHER_CAPITALS]
    questions += OTHER_QUESTIONS
    questions += [f"Write two sentences about {topic}." for topic in TOPICS]
    questions += [f"Write a short story that begins with {topic}." for topic in TOPICS]
    questions += [f"Explain {thing} in simple words." for thing in THINGS]
    questions += [f"Why does {thing} matter? Answer in one short paragraph." for thing in THINGS]
    questions += [f"Give me a sentence with the word '{word}'." for word in WORDS]
    questions += [f"What does the word '{word}' mean?" for word in WORDS]
    return [asked(question) for question in questions]


def asked(question: str) -> dict[str, Any]:
    """A chat that ends with a question."""
    return {"messages": [{"role": "user", "content": question}]}


def write(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """One JSON object per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/smollm2"))
    folder = parser.parse_args().out
    write(folder / "prompts_tested.jsonl", tested())
    write(folder / "prompts_taught.jsonl", taught())
    print(f"{len(tested())} tested, {len(taught())} taught: {folder}")


if __name__ == "__main__":
    main()
