"""A grammar of short verse whose lines have a chosen number of syllables and may hold a chosen word.

A line is a template of words and slots. Slots are filled in order at random; the last one takes only what makes the
count come out. Slots: N noun, P plural, A adjective, V verb of a singular noun, W plain verb, G verb with -ing,
L place, T time, M abstract noun, and X for the requested word. "a" becomes "an" where it must.
"""
import collections
import re

import topics
import words
from syllables import count_word, gerund, plural, third_person, with_s

# Weight by repetition: the plain sentence is the commonest.
PLAIN = """
the A N V|the A N V|the N V L|the N V L|A P W|P W L|A P L|L the N V|L a A N|T the N V|the N V T|a A N L|a A N V|no N L
only the N V|only a A N|how A the N|how A the P W|the N and the N|a N of M|G L|G like a N|still the N V|I W L|each N V
we W and W|the N keeps G|somewhere a N V|A N, A N|A N and A N|the A N, so A|and the N V|and then the N V|then a A N
nothing but A P|the P W and W|one A N V|where the N V|where the A P W|a N V, a N V|M and A P|M in the N|M L|after the A N
all the P are A|under A P|the N is A|the N is A and A|a N, then M|P and A P|my N V L|so A, the N|what the N V for
the N grows A|it is only M|A, A, the N|G and G|the N has no M|in the A N, M|as if the N V|I hear the N W|no one V L
"""

# The requested word by its kind. "any" fits a word of which nothing is known.
FRAMES = {
    "number": """X A P|X P L|X P W|X P W L|the X A P|X A P W|X P|X A P L|L X P|T X P|I count X P|count to X|count to X L|X times the N V
        the N V X times|X P and a N|only X P|only X A P|X P, A and A|X A P, one N|L, X A P|the clock says X|the clock says X L|X, says the N
        X P of M|past X P|after X P|X years of M|X, just X|X|just X|still X|I say X|the count is X|X and no more|the N V at X
        T, X P|G X P|X P G|X P, no N|and X P W|a N with X P|the A N counts X|X P for the N""",
    "one": """X A N|X N L|X N V|X N V L|the X A N|X A N V|X A N L|L X N|T X N|only X N|only X A N|the clock says X|count to X|X, says the N
        just X|still X|X|I say X|X N and no more|X N of M|the N V at X|X A N, so A""",
    "noun": """the X V|the X V L|the A X V|the A X|the X, so A|L the X|L, the X|a A X L|my X V|my X L|the N and the X|the X and the N
        the X is A|how A the X|no X L|T the X|the X V T|a N, a X|the X of the N|only the X|the X|my X|this A X|and the X V|a A X V
        the N, the X|I dream of a X|the X and M|M and the X|like the X, the N V|the X G L|A as a X|the X remains A""",
    "adjective": """the X N V|the X N|X P W L|a X N L|so X, the N|how X the N|the N is X|the N, X and A|A and X, the N|the P are X|a X N V|a X A N
        L the X N|still X|so X|too X|it is X|the N so X|T, X P|I am X L|X and A L|the N V, X|how X|all is X L|and X P W|the X A N V|we are X""",
    "verb": """I X L|we X L|we X|let us X L|to X and W|to X L|I X and W|the P X|the P X L|P that X L|we X T|T we X|let it X|I will X|now X
        they X and W|we X like the P|how we X|to X is M|X and W|X, says the N|you X L|you X and I W""",
    "any": """the word X V|the word X|I whisper X|I whisper X L|someone says X|someone says X L|the P murmur X|the N says X|the A N says X|a N called X
        the name is X|X, says the N|X, the P say|only X|just X|still X|and X|X|I say X|I think of X|I think of X L|a note says X|L, X|T, X|thoughts of X
        thoughts of X L|M and X|M, then X|the N sings X|the N hums X L|and then X|now X|the word is X|X, X again|I dream of X|I dream of X L|the wind writes X
        you told me X|you said X L|we speak of X|A with X|the N knows X|X and M|a A word, X|X like a N|a N, and X|X in the N|X L|no word but X|sing X T""",
}

COUPLET_ENDS = [group.split(",") for group in """
in the night,by the light,out of sight,for the flight,pure and bright,soft and white|in the day,on the way,cold and gray,far away,so they say,down the bay
by the sea,wild and free,you and me,by the tree,endlessly|on the stone,all alone,overgrown,softly blown,skin and bone|in the rain,down the lane,on the plain,once again,through the pane
in the air,everywhere,on the stair,with great care,wild and bare|on the ground,without sound,turning round,never found,homeward bound|in the snow,soft and low,long ago,row by row,as they go
through the door,on the floor,evermore,by the shore,as before|in the sky,passing by,by and by,wondering why,low and high|of the year,far and near,cold and clear,never here,without fear
in the deep,half asleep,ours to keep,hills so steep,rows of sheep|on the hill,calm and still,in the chill,by the mill,on the sill|in the dark,as a spark,in the park,like a lark""".strip().replace("\n", "|").split("|")]

VOWEL_SOUND = re.compile(r"(?:[aeiou](?!ni[^mn]|uro|ro)|hon|hour)")


def templates(text):
    return [t.strip().split() for t in text.replace("\n", "|").split("|") if t.strip()]


def split_list(text, separator=None):
    return [w.strip() for w in text.replace("\n", separator or " ").split(separator) if w.strip()]


class Slots:
    """The fillers of each slot, with their syllables, all together and by count."""

    def __init__(self):
        self.all = collections.defaultdict(list)
        self.by_count = collections.defaultdict(list)

    def add(self, slot, text, count, weight=1):
        for _ in range(weight):
            self.all[slot].append((text, count))
            self.by_count[slot, count].append(text)

    def nouns(self, names, weight=1):
        for name in names:
            bare = name.lstrip("~")
            count = count_word(bare)
            self.add("N", bare, count, weight)
            if bare == name:
                self.add("P", plural(bare), with_s(count, bare) if plural(bare) != bare else count, weight)

    def adjectives(self, names, weight=1):
        for name in names:
            self.add("A", name, count_word(name), weight)

    def verbs(self, names, weight=1):
        for name in names:
            count = count_word(name)
            self.add("V", third_person(name), with_s(count, name), weight)
            self.add("W", name, count, weight)
            self.add("G", gerund(name), count if re.search(r"[^aeiou]le$", name) else count + 1, weight)

    def phrases(self, slot, names, weight=1):
        for name in names:
            self.add(slot, name, sum(map(count_word, name.split())), weight)


def common(slots):
    slots.nouns(split_list(topics.NOUNS))
    slots.adjectives(split_list(topics.ADJECTIVES))
    slots.verbs(split_list(topics.VERBS))
    slots.phrases("T", split_list(topics.TIMES, ","))
    slots.phrases("M", split_list(topics.ABSTRACTS))


class Topic:
    def __init__(self, line):
        names, nouns, adjectives, verbs, places = [part.strip() for part in line.split("|")]
        self.names = [n.strip() for n in names.split(";")]
        self.key = self.names[0]
        self.slots = Slots()
        common(self.slots)
        self.slots.nouns(nouns.split(), 8)
        self.slots.adjectives(adjectives.split(), 9)
        self.slots.verbs(verbs.split(), 12)
        self.slots.phrases("L", split_list(places, ","))


TOPICS = [Topic(line) for line in topics.TOPICS.strip().splitlines()]
# Without a subject, or with one that is only a name, lines are about anything.
ANYTHING = Slots()
common(ANYTHING)
for _topic in TOPICS:
    for _place, _count in _topic.slots.all["L"]:
        ANYTHING.add("L", _place, _count)

PLAIN_TEMPLATES = templates(PLAIN)
FRAME_TEMPLATES = {kind: templates(text) for kind, text in FRAMES.items()}
SLOT = re.compile(r"^([NPAVWGLTM])(,?)$")
REQUEST = re.compile(r"^X(,?)$")
_fixed = {}


def fixed_count(token):
    if token not in _fixed:
        _fixed[token] = count_word(token.strip(","))
    return _fixed[token]


def fill(rng, template, slots, syllables, word=None, word_syllables=0):
    """The template as text with exactly that many syllables, or None if chance found no way."""
    rest = syllables
    open_slots = []
    for i, token in enumerate(template):
        if REQUEST.match(token):
            rest -= word_syllables
        elif SLOT.match(token):
            open_slots.append(i)
        else:
            rest -= fixed_count(token)
    if rest < len(open_slots) or (rest > 0 and not open_slots):
        return None
    out = list(template)
    # The slot that makes the count come out is any of them, so that no place prefers short or long words.
    rng.shuffle(open_slots)
    used = set()
    for k, i in enumerate(open_slots):
        slot, comma = SLOT.match(template[i]).groups()
        left = len(open_slots) - k - 1
        if left:
            text, count = rng.choice(slots.all[slot])
        else:
            choices = slots.by_count.get((slot, rest))
            if not choices:
                return None
            text, count = rng.choice(choices), rest
        if rest - count < left or text in used:
            return None
        used.add(text)
        rest -= count
        out[i] = text + comma
    for i, token in enumerate(template):
        requested = REQUEST.match(token)
        if requested:
            out[i] = word + requested.group(1)
    for i, token in enumerate(out[:-1]):
        if token == "a" and template[i] == "a" and VOWEL_SOUND.match(out[i + 1].lower()):
            out[i] = "an"
    return " ".join(out)


def plain_line(rng, slots, syllables):
    while True:
        line = fill(rng, rng.choice(PLAIN_TEMPLATES), slots, syllables)
        if line:
            return line


def word_line(rng, slots, syllables, word, word_syllables, kind):
    """A line that holds the word, or None if it is too long for the line."""
    if word_syllables > syllables:
        return None
    for attempt in range(200):
        # A word of known kind also stands as a mere word now and then.
        group = kind if attempt < 120 and rng.random() < 0.8 else ("any" if kind != "one" else "one")
        line = fill(rng, rng.choice(FRAME_TEMPLATES[group]), slots, syllables, word, word_syllables)
        if line:
            return line
    return None


STOP = set("the a an and of in on no is at to i we then still only so how where one all my under through over beyond beside by between".split())


def content(line):
    return {w.strip(",") for w in line.split()} - STOP


def lines(rng, slots, counts, requests):
    """One line per count; each request (word, syllables, kind) stands in a line of its own. None if one fits nowhere."""
    places = list(range(len(counts)))
    rng.shuffle(places)
    out = [None] * len(counts)
    for word, syllables, kind in requests:
        for place in places:
            if out[place] is None:
                out[place] = word_line(rng, slots, counts[place], word, syllables, kind)
                if out[place]:
                    break
        else:
            return None
    seen = set().union(*(content(line) for line in out if line))
    for i, count in enumerate(counts):
        while out[i] is None:
            line = plain_line(rng, slots, count)
            if not content(line) & seen:
                out[i] = line
                seen |= content(line)
    return out


def couplet(rng, slots, requests):
    """Two lines of eight syllables that rhyme."""
    body = lines(rng, slots, [5, 5], requests)
    if body is None:
        return None
    ends = rng.sample(rng.choice(COUPLET_ENDS), 2)
    return [f"{line} {end}" for line, end in zip(body, ends)]


def vocabulary():
    """Every word that the grammar can write on its own, with its syllables."""
    table = {}

    def put(text, count=None):
        for token in text.replace(",", " ").split():
            table[token] = count if count and " " not in text else count_word(token)

    for slots in [t.slots for t in TOPICS] + [ANYTHING]:
        for fillers in slots.all.values():
            for text, count in fillers:
                put(text, count)
    for group in [PLAIN_TEMPLATES] + list(FRAME_TEMPLATES.values()):
        for template in group:
            for token in template:
                if not SLOT.match(token) and not REQUEST.match(token):
                    put(token)
    for ends in COUPLET_ENDS:
        for end in ends:
            put(end)
    for topic in TOPICS:
        for name in topic.names:
            put(name)
    put("an")
    return table


def requestable():
    """Every word that a prompt of the training corpus or the evaluation may ask for: word -> kind."""
    kinds = {}
    for text, kind in ((words.OTHERS, "any"), (words.VERBS, "verb"), (words.ADJECTIVES, "adjective"), (words.NOUNS, "noun")):
        for word in text.split():
            kinds[word] = kind
    for topic_line in topics.TOPICS.strip().splitlines():
        _, nouns, adjectives, verbs, _ = topic_line.split("|")
        for text, kind in ((verbs, "verb"), (adjectives, "adjective"), (nouns.replace("~", ""), "noun")):
            for word in text.split():
                kinds.setdefault(word, kind)
    for number in words.NUMBERS:
        kinds[number] = "one" if number == "one" else "number"
    return kinds
