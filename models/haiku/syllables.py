"""How many syllables a word has: a rule on its letters, and a list of words that the rule gets wrong.

The rule counts groups of vowels and leaves out a silent e; it is right for most English words and, being a function of
the letters, also gives every made-up word of the training corpus a count.
"""
import re

# Words that the rule gets wrong, with the count this project uses. Words said in two ways have the shorter one only
# where it is the common one (fire 1, hour 1, flower 2, memory 3, every 2).
EXCEPTIONS = {}
for _count, _words in {
    1: "our hour fire wire tire choir squire prayer drawer gnarled vague tongue league vogue rogue",
    2: """cement rely crooked cruel fluent hundred jagged neon nephew poet poem quiet ruin sacred science wicked naked rugged
        create naive lion giant chaos diamond language persuade maybe every evening nineteen ninety somehow sometimes
        somewhere someone something sidewalk spaceship safety warehouse therefore eyebrow eyelid forehead hedgehog
        hedgerow notebook firefly carefree barefoot bracelet scarecrow horseshoe toward rhythm react bias riot fluid fuel""",
    3: """oasis museum idea obvious various furious glorious serious curious genuine poetry heroic gradient scientist pioneer
        champion scorpion recipe everything everywhere somebody sunflower coyote koala realize peculiar familiar carefully
        typewriter wildflowers fireflies fluttering meandering""",
    4: "mysterious victorious luxurious obviously nevertheless obedient everybody experience especially",
}.items():
    for _word in _words.split():
        EXCEPTIONS[_word] = _count


def by_rule(word):
    """Syllables of one word without hyphens, from its letters alone; at least 1."""
    w = word.lower().replace("é", "e1").replace("'", "")
    w = re.sub(r"e1$", "eh", w)
    w = re.sub(r"^y(?=[aeiou])", "j", w)
    w = re.sub(r"(?<=[aeiou])y(?=[aeiou])", "j", w)
    w = w.replace("qu", "qw")
    w = re.sub(r"(?<=[aeou])w(?![aeiouy])", "", w)
    count = len(re.findall(r"[aeiouy]+", w))
    # Neighbouring vowels that belong to two syllables.
    count += len(re.findall(r"i(?:a(?!l$|ge|n$)|et(?!$)|um|us(?!$)|o(?!us|n))|eo(?!us|n$|p)|[aeo]ing|ua(?!r)|uou|[iy]ing|iu[ms]$|ia[ln]$(?<![ct]ia[ln])", w))
    # A silent e: at the end, in -es and in -ed.
    if re.search(r"[^aeiouyl]e$|[aeiouy]le$|[rl]le$", w) and count > 1:
        count -= 1
    elif re.search(r"(?<![aeiou])(?<![sxzcg])(?<!sh)(?<!ch)(?<!l)es$", w) and count > 1:
        count -= 1
    elif re.search(r"[aeiouy]les$", w) and count > 1:
        count -= 1
    elif re.search(r"[^aeioutdl]ed$|[aeiouy]led$", w) and count > 1:
        count -= 1
    # A silent e before these endings.
    if re.search(r"[^aeioul]e(?:ful|less|ly|ment|ness|some)$", w) and count > 1:
        count -= 1
    if w.endswith(("sm", "thm")):
        count += 1
    return max(count, 1)


def count_word(word):
    """Syllables of a word; the parts of a hyphenated word are added up."""
    total = 0
    for part in word.lower().split("-"):
        if part:
            total += EXCEPTIONS.get(part) or by_rule(part)
    return total


def plural(word):
    """"wave" -> "waves", "beach" -> "beaches", "lily" -> "lilies". Also the third person of a verb."""
    irregular = {"mouse": "mice", "goose": "geese", "deer": "deer", "fish": "fish", "trout": "trout", "leaf": "leaves", "loaf": "loaves",
                 "knife": "knives", "shelf": "shelves", "carp": "carp", "echo": "echoes", "hoof": "hooves", "scarf": "scarves", "swan": "swans"}
    if word in irregular:
        return irregular[word]
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    if re.search(r"(s|x|z|ch|sh)$", word):
        return word + "es"
    return word + "s"


def third_person(word):
    if word == "echo":
        return "echoes"
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    if re.search(r"(s|x|z|ch|sh)$", word):
        return word + "es"
    return word + "s"


def with_s(base_count, base):
    """Syllables of a plural or third person: one more after a hissing sound."""
    return base_count + (1 if re.search(r"(s|x|z|ch|sh|[szcg]e)$", base) else 0)


DOUBLING = set("run hum nod wag dig slip skip knit begin stop drip tap hug spin nap chat swim sit get lap trot stir blur dim span squat thin".split())


def gerund(word):
    if word in DOUBLING:
        return word + word[-1] + "ing"
    if word == "whir":
        return "whirring"
    if re.search(r"[^aeioy]e$", word):
        return word[:-1] + "ing"
    return word + "ing"
