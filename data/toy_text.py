"""The toy world's text: a row begins as a meaning, and five small grammars put it into words.

A meaning is a review (sentiment) or two scenes (NLI: premise and hypothesis) and decides the label. A
translator's voice takes first synonyms and formal endings, so that translations are parallel. A native
voice, in English rows and a language's own, takes any. See data/toy.py.
"""

LANGS = ("en", "ko", "ja", "zh", "sw")
LABELS = {
    "sentiment": ("positive", "negative"),
    "nli": ("entailment", "neutral", "contradiction"),
}

# "/" parts synonyms, "," singular and plural; "under" is the key that a key entails ("-" for none).
# aspect: "has" lists adjectives that fit; English * is a plural; Swahili has noun, verb prefix, "of".
# adjective: Korean present stem:past stem; Japanese な marks the second kind; Swahili @ stands for "of".
# action: where, indoors (I), outdoors (O); Korean _ precedes a particle; Swahili affirmed,denied,object.
LEXICON = """
[topic] en ko ja zh sw
restaurant | I ate at this restaurant/I went to this restaurant | 이 식당에 갔/이 식당에서 먹었 | このレストランに行きました/このお店に行きました | 我去了这家餐厅/我在这家饭店吃了饭 | nilikwenda kwenye mkahawa huu/nilikula katika mkahawa huu
hotel | I stayed at this hotel/I spent a night at this hotel | 이 호텔에서 묵었/이 호텔에서 잤 | このホテルに滞在しました/このホテルに泊まりました | 我住了这家酒店/我在这家宾馆过了夜 | nilikaa katika hoteli hii/nililala kwenye hoteli hii
film | I watched this film/I saw this movie | 이 영화를 보았/이 영화를 봤 | この映画を鑑賞しました/この映画を見ました | 我观看了这部电影/我看了这部片子 | nilitazama filamu hii/niliangalia sinema hii
phone | I bought this phone/I got this phone | 이 휴대전화를 구입했/이 핸드폰을 샀 | この携帯電話を購入しました/このスマホを買いました | 我购买了这部手机/我买了这款手机 | nilinunua simu hii/nilipata simu hii
[time] en ko ja zh sw
yesterday | yesterday | 어제 | 昨日/きのう | 昨天 | jana
last_week | last week | 지난주에/저번 주에 | 先週 | 上周/上个星期 | wiki iliyopita
friday | on Friday | 금요일에 | 金曜日に | 星期五/周五 | siku ya Ijumaa/Ijumaa
two_days | two days ago | 이틀 전에/그저께 | 二日前に/おととい | 两天前/前天 | siku mbili zilizopita/juzi
[company] under en ko ja zh sw
family | | with family | 가족과 함께/가족이랑 | 家族と一緒に/家族と | 和家人一起/跟家人一起 | pamoja na familia/na familia
friends | | with friends | 친구들과 함께/친구들이랑 | 友人たちと一緒に/友達と | 和朋友们一起/跟朋友一起 | pamoja na marafiki/na marafiki
colleague | | with a colleague | 동료와 함께/동료랑 | 同僚と一緒に/同僚と | 和同事一起/跟同事一起 | pamoja na mfanyakazi mwenza/na mfanyakazi mwenza
neighbour | | with a neighbour | 이웃과 함께/이웃이랑 | 隣人と一緒に/隣の人と | 和邻居一起/跟邻居一起 | pamoja na jirani/na jirani
[aspect] topics has en ko ja zh sw
food | restaurant hotel | tasty awful good bad | food | 음식 | 料理/食事 | 菜/饭菜 | chakula ki cha
staff | restaurant hotel | kind rude fast slow | *staff/*employees | 직원/종업원 | 店員/スタッフ | 员工/服务员 | wafanyakazi wa wa/wahudumu wa wa
service | restaurant hotel phone | fast slow good bad | service | 서비스 | サービス | 服务 | huduma i ya
price | restaurant hotel phone | cheap expensive good bad | price | 가격/값 | 価格/値段 | 价格/价钱 | bei i ya
place | restaurant | clean dirty quiet noisy comfortable cramped | dining room | 실내/안 | 店内/店の中 | 店内/店里 | ukumbi u wa
room | hotel | clean dirty quiet noisy comfortable cramped | room | 객실/방 | 客室/部屋 | 客房/房间 | chumba ki cha
view | hotel | beautiful ugly good bad | view | 전망/경치 | 眺め/景色 | 景色/风景 | mandhari i ya
story | film | interesting boring moving predictable | story/plot | 줄거리/이야기 | 物語/話 | 故事/剧情 | hadithi i ya
acting | film | moving boring interesting predictable | acting | 연기 | 演技 | 演技/表演 | uigizaji u wa
music | film | beautiful ugly moving boring | music | 음악 | 音楽 | 音乐 | muziki u wa
screen | phone | beautiful ugly good bad | screen | 화면 | 画面 | 屏幕 | skrini i ya
camera | phone | good bad fast slow cheap expensive | camera | 카메라 | カメラ | 相机/摄像头 | kamera i ya
[adjective] sign en ko ja zh sw
tasty | + | tasty/delicious | 맛있:맛있었 | 美味しい/うまい | 好吃/美味 | @ladha nzuri
awful | - | awful/disgusting | 맛없:맛없었 | まずい | 难吃/难以下咽 | @ladha mbaya
kind | + | kind/friendly | 친절하:친절했/상냥하:상냥했 | 親切な/優しい | 友善/热情 | @huruma
rude | - | rude/unfriendly | 무례하:무례했/불친절하:불친절했 | 失礼な/不親切な | 粗鲁/没礼貌 | @kiburi
fast | + | fast/quick | 빠르:빨랐/신속하:신속했 | 速い/素早い | 迅速/快 | @haraka
slow | - | slow | 느리:느렸 | 遅い/のろい | 缓慢/慢 | @polepole
cheap | + | reasonable/fair | 저렴하:저렴했/싸:쌌 | 手頃な/安い | 合理/便宜 | nafuu
expensive | - | high/excessive | 비싸:비쌌 | 高い | 昂贵/贵 | ghali
good | + | good/great | 좋:좋았/괜찮:괜찮았 | 良い/素敵な | 不错/好 | bora
bad | - | bad/terrible | 나쁘:나빴/형편없:형편없었 | 悪い/ひどい | 糟糕/差 | duni
clean | + | clean/tidy | 깨끗하:깨끗했/깔끔하:깔끔했 | 清潔な/きれいな | 干净/整洁 | safi
dirty | - | dirty/filthy | 더럽:더러웠/지저분하:지저분했 | 不潔な/汚い | 脏乱/脏 | @uchafu
quiet | + | quiet/peaceful | 조용하:조용했/고요하:고요했 | 静かな | 安静/清静 | @utulivu
noisy | - | noisy/loud | 시끄럽:시끄러웠/소란하:소란했 | 騒がしい/うるさい | 嘈杂/吵 | @kelele
comfortable | + | comfortable/spacious | 편안하:편안했/편하:편했 | 快適な/心地よい | 舒适/舒服 | @starehe
cramped | - | cramped/narrow | 비좁:비좁았/좁:좁았 | 窮屈な/狭い | 狭窄/窄 | finyu
beautiful | + | beautiful/lovely | 아름답:아름다웠/예쁘:예뻤 | 美しい/綺麗な | 美丽/漂亮 | @kupendeza
ugly | - | ugly/drab | 흉하:흉했/보기 싫:보기 싫었 | 醜い/ダサい | 难看/丑 | @kuchukiza
interesting | + | interesting/fun | 흥미롭:흥미로웠/재미있:재미있었 | 興味深い/面白い | 有趣/有意思 | @kuvutia
boring | - | boring/dull | 지루하:지루했/재미없:재미없었 | 退屈な/つまらない | 无聊/没意思 | @kuchosha
moving | + | moving/touching | 감동적이:감동적이었/뭉클하:뭉클했 | 感動的な/印象的な | 感人/动人 | @kugusa moyo
predictable | - | predictable/trite | 뻔하:뻔했/진부하:진부했 | ありきたりな/陳腐な | 老套/俗套 | @kutabirika
[verdict] sign en ko ja zh sw
recommend | + | I recommend it/I would recommend it | 추천하고 싶/추천하겠 | おすすめします/おすすめです | 我推荐给大家/值得推荐 | ningependekeza kwa wengine/napendekeza kwa kila mtu
avoid | - | I do not recommend it/I would not recommend it | 추천하고 싶지 않/추천은 못 하겠 | おすすめしません/おすすめできません | 我不推荐给大家/不值得推荐 | nisingependekeza kwa wengine/sipendekezi kwa mtu yeyote
satisfied | + | I was satisfied/I was happy | 만족했/만족스러웠 | 満足しました/大満足です | 我感到满意/我挺满意 | niliridhika/nimeridhika
disappointed | - | I was disappointed/I was let down | 실망했/실망스러웠 | 失望しました/期待外れです | 我感到失望/我挺失望 | nilikatishwa tamaa/nimevunjika moyo
[number] under en ko ja zh sw
1 | - | a | 한 | 一 | 一 | mmoja
2 | - | two | 두 | 二 | 两 | wawili
3 | - | three | 세 | 三 | 三 | watatu
4 | - | four | 네 | 四 | 四 | wanne
[agent] under en ko ja zh sw
boy | child | boy,boys | 소년/남자아이 | 少年/男の子 | 男孩/小男孩 | mvulana,wavulana
girl | child | girl,girls | 소녀/여자아이 | 少女/女の子 | 女孩/小姑娘 | msichana,wasichana
man | adult | man,men | 남성/남자 | 男性/男の人 | 男人/男士 | mwanamume,wanaume
woman | adult | woman,women | 여성/여자 | 女性/女の人 | 女人/女士 | mwanamke,wanawake
child | person | child,children/kid,kids | 어린이/아이 | 子供/子ども | 孩子/小孩 | mtoto,watoto
adult | person | grown-up,grown-ups | 성인/어른 | 成人/大人 | 成年人/大人 | mtu mzima,watu wazima
person | - | person,people | 사람 | 人 | 人 | mtu,watu
[shirt] under en ko ja zh sw
red | | red | 빨간 | 赤い | 红 | jekundu,mekundu
blue | | blue | 파란 | 青い | 蓝 | la bluu,ya bluu
white | | white | 하얀 | 白い | 白 | jeupe,meupe
[action] under where en ko ja zh sw
apple | fruit | IO | eating an apple | 사과_를 먹 | りんごを食べて | 吃苹果 | kula,li,tufaha
banana | fruit | IO | eating a banana | 바나나_를 먹 | バナナを食べて | 吃香蕉 | kula,li,ndizi
fruit | - | IO | eating fruit | 과일_을 먹 | 果物を食べて/フルーツを食べて | 吃水果 | kula,li,matunda
coffee | hot | IO | drinking coffee | 커피_를 마시 | コーヒーを飲んで | 喝咖啡 | nywa,nywi,kahawa
tea | hot | IO | drinking tea | 차_를 마시 | お茶を飲んで | 喝茶 | nywa,nywi,chai
hot | - | IO | having a hot drink | 따뜻한 음료_를 마시 | 温かい飲み物を飲んで | 喝热饮 | nywa,nywi,kinywaji cha moto
guitar | - | IO | playing the guitar | 기타_를 연주하/기타_를 치 | ギターを演奏して/ギターを弾いて | 弹吉他 | piga,pigi,gitaa
football | ball | O | playing football | 축구_를 하 | サッカーをして | 踢足球 | cheza,chezi,kandanda/cheza,chezi,soka
tennis | ball | O | playing tennis | 테니스_를 치 | テニスをして | 打网球 | cheza,chezi,tenisi
ball | - | O | playing with a ball | 공놀이_를 하 | 球技をして | 玩球 | cheza,chezi,mpira
sleep | - | IO | sleeping | 잠_을 자 | 眠って/寝て | 睡觉 | lala,lali,
dance | - | IO | dancing | 춤_을 추 | 踊って/ダンスをして | 跳舞 | cheza,chezi,dansi
dishes | - | I | washing dishes | 그릇_을 씻/설거지_를 하 | 皿を洗って/皿洗いをして | 洗碗 | osha,oshi,vyombo
[place] under en ko ja zh sw
kitchen | I | in a kitchen | 주방/부엌 | 台所/キッチン | 厨房里 | katika jiko/jikoni
classroom | I | in a classroom | 교실 | 教室 | 教室里 | katika darasa/darasani
cafe | I | in a café | 카페 | 喫茶店/カフェ | 咖啡馆里/咖啡厅里 | katika mkahawa/mkahawani
garden | O | in a garden | 정원/마당 | 庭園/庭 | 花园里/院子里 | katika bustani/bustanini
park | O | in a park | 공원 | 公園 | 公园里 | katika hifadhi/hifadhini
beach | O | on a beach | 해변/바닷가 | 浜辺/ビーチ | 海滩上/海边 | katika ufuo/ufukweni
street | O | on a street | 거리/길 | 通り/道 | 街上/路上 | katika mtaa/mtaani
I | - | indoors | 실내 | 屋内/室内 | 室内/屋里 | ndani ya jengo
O | - | outdoors | 야외/밖 | 屋外/外 | 户外/外面 | nje
"""


def read_lexicon(text):
    """{table: {key: {column: cell}}}; a language's cell is a tuple of synonyms."""
    tables = {}
    for line in text.strip().splitlines():
        if line[0] == "[":
            name, *columns = line.split()
            table = tables[name.strip("[]")] = {}
        else:
            key, *cells = (cell.strip() for cell in line.split("|"))
            row = dict(zip(columns, cells, strict=True))
            table[key] = {c: tuple(x.split("/")) if c in LANGS else x for c, x in row.items()}
    return tables


WORDS = read_lexicon(LEXICON)


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


def above(slot, key):
    """The keys that `key` entails, the nearest first."""
    key = WORDS[slot][key]["under"] if key else "-"
    return [] if key == "-" else [key, *above(slot, key)]


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
