"""The toy world's text: a row begins as a meaning, and five small grammars put it into words.

A meaning is a review (sentiment) or two scenes (NLI: premise and hypothesis) and decides the label. A
translator's voice takes first synonyms and formal endings, so that translations are parallel. A native
voice, in English rows and a language's own, takes any. The words are in data/toy_words.txt. See data/toy.py.
"""

from functools import cache
from pathlib import Path

LANGS = ("en", "ko", "ja", "zh", "sw")
LABELS = {
    "sentiment": ("positive", "negative"),
    "nli": ("entailment", "neutral", "contradiction"),
}


def read_lexicon(path):
    """{table: {key: {column: cell}}}; a language's cell is a tuple of synonyms."""
    tables = {}
    lines = path.read_text("utf-8").splitlines()
    for line in [line for line in lines if not line.startswith("#")]:
        if line[0] == "[":
            name, *columns = line.split()
            table = tables[name.strip("[]")] = {}
        else:
            key, *cells = (cell.strip() for cell in line.split("|"))
            row = dict(zip(columns, cells, strict=True))
            table[key] = {c: tuple(x.split("/")) if c in LANGS else x for c, x in row.items()}
    return tables


WORDS = read_lexicon(Path(__file__).with_name("toy_words.txt"))


class Voice:
    """Chooses words: the first synonyms, as a translator, or with `rng` any, as a native speaker."""

    def __init__(self, lang, rng=None):
        self.lang, self.rng = lang, rng
        self.ending = rng.randrange(3) if rng else 0  # of Korean and Japanese sentences

    def __call__(self, *synonyms):
        if self.rng and self.rng.random() < 0.5:
            return self.rng.choice(synonyms)
        return synonyms[0]

    def word(self, table, key):
        return self(*WORDS[table][key][self.lang]) if key else ""


def sentences(*texts):
    return " ".join(text[0].upper() + text[1:] + "." for text in texts if text)


# Sentiment. A review is a dict; its clauses, one or two, are (aspect, degree, adjective), where degree is
# "", "very" or "not". Link, verdict, and time and company of an opening may be "". The last clause decides.


def sample_clause(topic, positive, rng, used=""):
    """An aspect of the topic, but not `used`, and an adjective; 'not dirty' is positive."""
    degree = rng.choices(("", "very", "not"), (6, 3, 1))[0]
    sign = "+" if positive != (degree == "not") else "-"
    aspects = [k for k, row in WORDS["aspect"].items() if topic in row["topics"].split()]
    aspect = rng.choice([k for k in aspects if k != used])
    adjectives = WORDS["aspect"][aspect]["has"].split()
    adjective = rng.choice([k for k in adjectives if WORDS["adjective"][k]["sign"] == sign])
    return aspect, degree, adjective


def sample_review(label, rng):
    positive = label == "positive"
    topic = rng.choice(list(WORDS["topic"]))
    link = rng.choices(("", "and", "but"), (3, 5, 2))[0]
    last = sample_clause(topic, positive, rng)
    clauses = (last,)
    if link:
        clauses = (sample_clause(topic, positive == (link == "and"), rng, last[0]), last)

    verdict = time = company = ""
    if rng.random() < 0.6:
        sign = "+" if positive else "-"
        verdict = rng.choice([k for k, row in WORDS["verdict"].items() if row["sign"] == sign])
    if not (link and verdict) or rng.random() < 0.2:
        time, company = rng.choice(list(WORDS["time"])), rng.choice(list(WORDS["company"]))
    review = {"topic": topic, "time": time, "company": company}
    return {**review, "clauses": clauses, "link": link, "verdict": verdict}


def review_words(review, v):
    """In words: (time, company, topic) or (), [(noun, degree, adjective), ...], verdict or ""."""
    opening = [v.word(slot, review[slot]) for slot in ("time", "company", "topic")]
    clauses = review["clauses"]
    clauses = [(v.word("aspect", a), d, v.word("adjective", k)) for a, d, k in clauses]
    return opening if review["time"] else (), clauses, v.word("verdict", review["verdict"])


def en_review(review, v):
    opening, clauses, verdict = review_words(review, v)
    texts = []
    for noun, degree, adjective in clauses:
        be = "were" if noun[0] == "*" else "was"
        degree = {"": "", "very": v("very ", "really "), "not": "not "}[degree]
        texts.append(f"the {noun.lstrip('*')} {be} {degree}{adjective}")
    core = {"": "", "and": " and ", "but": ", but "}[review["link"]].join(texts)
    return sentences("{0} {2} {1}".format(*opening) if opening else "", core, verdict)


def ko_end(stem, v):
    if v.ending == 1:
        return stem + ("아요." if stem.endswith("않") else "어요.")
    return stem + ("네요." if v.ending == 2 else "습니다.")


def ko_review(review, v):
    opening, clauses, verdict = review_words(review, v)
    texts = []
    for noun, degree, adjective in clauses:
        present, past = adjective.split(":")
        stem = present + "지 않았" if degree == "not" else past
        closed = (ord(noun[-1]) - ord("가")) % 28 > 0  # the last syllable ends in a consonant
        particles = ("은", "는") if review["link"] == "but" else ("이", "가")
        subject = noun + particles[0 if closed else 1]
        texts.append(f"{v(subject, noun)} {v('매우 ', '정말 ') if degree == 'very' else ''}{stem}")
    core = {"": "", "and": "고 ", "but": v("지만 ", "는데 ")}[review["link"]].join(texts)
    return " ".join(ko_end(text, v) for text in (" ".join(opening), core, verdict) if text)


def ja_past(word, degree, v):
    """Past of an adjective that ends in い, or in the な of the second kind."""
    polite = v.ending < 2
    stem, second = word[:-1], word.endswith("な")
    if degree == "not":
        stem += v("ではな", "じゃな") if second else "くな"
    elif second:
        return stem + ("でした" if polite else "だった")
    return stem + ("かったです" if polite else "かった")


def ja_review(review, v):
    opening, clauses, verdict = review_words(review, v)
    texts = []
    for noun, degree, adjective in clauses:
        very = v("非常に", "とても") if degree == "very" else ""
        texts.append(f"{noun}{v('は', '')}{very}{ja_past(adjective, degree, v)}")
    core = {"": "", "and": v("し、", "し"), "but": v("が、", "けど、")}[review["link"]].join(texts)
    opening = "{}、{}{}".format(*opening) if opening else ""
    return "".join(text + "。" for text in (opening, core, verdict) if text)


def zh_review(review, v):
    opening, clauses, verdict = review_words(review, v)
    texts = []
    for noun, degree, adjective in clauses:
        also = "也" if texts and review["link"] == "and" else ""
        degree = {"": v("很", "挺"), "very": v("非常", "特别"), "not": "不"}[degree]
        texts.append(noun + also + degree + adjective)
    core = {"": "", "and": "，", "but": v("，但是", "，不过")}[review["link"]].join(texts)
    opening = "{}{}，{}".format(*opening) if opening else ""
    return "".join(text + "。" for text in (opening, core, verdict) if text)


def sw_review(review, v):
    opening, clauses, verdict = review_words(review, v)
    texts = []
    for noun, degree, adjective in clauses:
        noun, verb, of = noun.split()
        was = f"ha{verb}kuwa" if degree == "not" else f"{verb}likuwa"
        adjective = adjective.replace("@", of + " ")
        texts.append(f"{noun} {was} {adjective}{v(' sana', ' kabisa') if degree == 'very' else ''}")
    core = {"": "", "and": v(" na ", " na pia "), "but": v(", lakini ", ", ila ")}[review["link"]]
    opening = "{0} {2} {1}".format(*opening) if opening else ""
    return sentences(opening, core.join(texts), verdict)


# NLI. A scene is {slot: key}, "" where nothing is said. Both captions are of one picture, as in SNLI: keys
# of a slot exclude each other unless one entails the other.
SLOTS = ("number", "agent", "shirt", "action", "place", "company")


@cache
def above(slot, key):
    """The keys that `key` entails, the nearest first."""
    key = WORDS[slot][key]["under"] if key else "-"
    return [] if key == "-" else [key, *above(slot, key)]


@cache
def options(label, slot, key):
    """The keys that `key` entails, leaves open (neutral) or rules out (contradiction)."""
    entailed = above(slot, key)
    entailing = [k for k in WORDS[slot] if key in above(slot, k)]
    if label == "entailment":
        return entailed[:1]
    if label == "neutral":
        return entailing
    if slot == "company" or key == "":
        return []
    return [k for k in WORDS[slot] if k not in (key, *entailed, *entailing)]


def possible(scene):
    """Whether the action is done at such a place."""
    side = (scene["place"], *above("place", scene["place"]))[-1]
    return side in WORDS["action"][scene["action"]]["where"]


def edit(scene, slot, label, rng):
    """The scene with one slot changed as the label says, or None where nothing fits."""
    scenes = [{**scene, slot: key} for key in options(label, slot, scene[slot])]
    scenes = [changed for changed in scenes if possible(changed)]
    return rng.choice(scenes) if scenes else None


def sample_scenes(label, rng):
    """Premise and hypothesis: one edit decides the label, up to two widening ones go with it."""
    while True:
        premise = {slot: rng.choice(list(WORDS[slot])) for slot in SLOTS}
        for slot in ("shirt", "company"):
            premise[slot] = rng.choice((premise[slot], ""))
        slots = rng.sample(SLOTS, 3)
        if label == "contradiction" and rng.random() < 0.3:
            hypothesis = {**premise, "not": True}
        else:
            hypothesis = edit(premise, slots[0], label, rng)
        if hypothesis is None or not possible(premise):
            continue
        for slot in slots[1:]:
            if rng.random() < 0.4:
                hypothesis = edit(hypothesis, slot, "entailment", rng) or hypothesis
        return premise, hypothesis


def scene_words(scene, v):
    """Whether it is of several people, and {slot: words}, each in the number of the people."""
    plural = scene["number"] != "1"
    words = {slot: v.word(slot, scene[slot]) for slot in SLOTS}
    for slot in ("agent", "shirt"):
        words[slot] = words[slot].split(",")[-1 if plural else 0]
    return plural, words


def en_scene(scene, v):
    plural, w = scene_words(scene, v)
    if w["shirt"]:
        w["shirt"] = f"in {w['shirt']} shirts" if plural else f"in a {w['shirt']} shirt"
    be = ("are" if plural else "is") + (" not" if "not" in scene else "")
    words = (w["number"], w["agent"], w["shirt"], be, w["action"], w["place"], w["company"])
    return sentences(" ".join(filter(None, words)))


def ko_scene(scene, v):
    _, w = scene_words(scene, v)
    shirt = f"{w['shirt']} {v('셔츠를', '셔츠')} 입은" if w["shirt"] else ""
    thing, verb = w["action"].split("_")
    action = thing + v(verb, verb[1:]) + "고 있" + ("지 않" if "not" in scene else "")
    words = (shirt, w["agent"], w["number"], "명이", w["company"], w["place"] + "에서")
    return " ".join(filter(None, (*words, ko_end(action, v))))


def ja_scene(scene, v):
    _, w = scene_words(scene, v)
    shirt = w["shirt"] + v("シャツを着た", "シャツの") if w["shirt"] else ""
    people = v(f"{w['number']}人の{w['agent']}が", f"{w['agent']}が{w['number']}人、")
    formal, casual = ("いません", "いない") if "not" in scene else ("います", "いる")
    ending = casual if v.ending == 2 else formal
    return f"{shirt}{people}{w['company']}{w['place']}で{w['action']}{ending}。"


def zh_scene(scene, v):
    _, w = scene_words(scene, v)
    shirt = f"穿{w['shirt']}{v('色衬衫', '衬衫')}的" if w["shirt"] else ""
    deny = v("没有", "没") if "not" in scene else ""
    return f"{w['number']}个{shirt}{w['agent']}{deny}{w['company']}在{w['place']}{w['action']}。"


def sw_scene(scene, v):
    plural, w = scene_words(scene, v)
    if w["shirt"]:
        w["shirt"] = ("waliovaa mashati " if plural else "aliyevaa shati ") + w["shirt"]
    affirmed, denied, thing = w["action"].split(",")
    deny, affirm = ("hawa", "wana") if plural else ("ha", "ana")
    verb = deny + denied if "not" in scene else affirm + affirmed
    words = (w["agent"], w["number"], w["shirt"], verb, thing, w["place"], w["company"])
    return sentences(" ".join(filter(None, words)))


REVIEWS = {"en": en_review, "ko": ko_review, "ja": ja_review, "zh": zh_review, "sw": sw_review}
SCENES = {"en": en_scene, "ko": ko_scene, "ja": ja_scene, "zh": zh_scene, "sw": sw_scene}


def sample(task, label, rng):
    """The meanings of a row with this label: one review, or premise and hypothesis."""
    return (sample_review(label, rng),) if task == "sentiment" else sample_scenes(label, rng)


def speak(task, lang, meanings, rng=None):
    """The row's texts: as a translator writes them, or with `rng` as a native speaker does."""
    voice = Voice(lang, rng)
    write = (REVIEWS if task == "sentiment" else SCENES)[lang]
    return tuple(write(meaning, voice) for meaning in meanings)
