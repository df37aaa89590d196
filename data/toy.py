"""Build the toy world: parallel text in five languages, and a tiny multilingual encoder to align.

    python data/toy.py                    # writes data/toy, offline
    python data/toy.py --rows 2000 --steps 50 --out /tmp/toy

Every row starts as a meaning, a small dataclass of slots that also decides the label. Each language has a
realiser with its own grammar, and two voices: the plain one writes the *translation* of an English row, the
native one writes what a speaker of that language would have written (other synonyms, register, topics). The
encoder is an XLM-R of two layers, pretrained on this text, no dev or test sentence in it, by masked language
modelling and by telling translations from other sentences, so that its languages are aligned in part.
No outside text is used.

Reads    nothing.
Writes   <out>/<task>/<lang>/{train,dev,test,translated}.tsv   (tasks sentiment, nli; en, ko, ja, zh, sw)
         <out>/encoder/   loads with AutoModel and AutoTokenizer
Expect   a masked-LM loss of about 3.2; two to three minutes on two CPU cores
It shows the mechanism of LangAlign and is no evidence about real languages. See data/README.md.

Shapes   B sequences of a batch, T tokens, M masked tokens, V vocabulary.
"""
import argparse
import itertools
import json
import os
import random
import shutil
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, decoders, processors, trainers
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaForMaskedLM, XLMRobertaModel

LANGS = ("en", "ko", "ja", "zh", "sw")
HEADERS = {"sentiment": ("label", "text"), "nli": ("label", "text", "text_b")}
LABELS = {"sentiment": ("positive", "negative"), "nli": ("entailment", "neutral", "contradiction")}
MARKER = ".made_by_toy"              # a folder without it is not ours to replace
NATIVE_WORDS = 0.4                   # how often native text takes a word that translations do not use


def table(columns, text):
    """Rows 'key | cell | ...' as {key: {column: cell}}; a language's cell is a list of synonyms.

    The first synonym is the one translations use, the others are native."""
    rows = {}
    for line in text.strip().replace("\n    ", " ").splitlines():       # an indented line goes on
        cells = [cell.strip() for cell in line.split("|")]
        assert len(cells) == len(columns.split()) + 1, line
        rows[cells[0]] = {c: x.split("/") if c in LANGS else x for c, x in zip(columns.split(), cells[1:])}
    return rows


# Lexicon of the reviews.
# ko: stems that end in a past or stative syllable, so that every ending attaches unchanged.
TOPICS = table("kind en ko ja zh sw", """
restaurant | P | went to this restaurant | 이 레스토랑에 갔/이 식당에 갔/여기 식당에 다녀왔 | このレストランに行った/このお店に行った |
    去了这家餐厅/去这家饭店吃了饭 | nilikwenda kwenye mkahawa huu/nilienda kwenye mgahawa huu
hotel | P | spent a night at this hotel | 이 호텔에서 하룻밤을 보냈/이 호텔에서 하룻밤 묵었/이 숙소에서 하룻밤 잤 |
    このホテルに一晩滞在した/この宿に一泊した/このホテルに泊まった | 在这家酒店住了一晚/在这家宾馆住了一晚 |
    nililala usiku mmoja katika hoteli hii/nililala kwenye hoteli hii
film | F | watched this film/saw this film | 이 영화를 보았/이 영화 봤 | この映画を鑑賞した/この映画を見た | 观看了这部电影/看了这部片子/看了这部电影 |
    nilitazama filamu hii/niliangalia sinema hii
book | B | read this book | 이 책을 읽었/이 책 읽었 | この書籍を読んだ/この本を読んだ | 阅读了这本书/看了这本书 | nilisoma kitabu hiki
phone | B | bought this phone | 이 휴대전화를 구입했/이 핸드폰 샀/이 폰 샀 | この携帯電話を購入した/このスマホを買った | 购买了这部手机/买了这款手机 |
    nilinunua simu hii
app | B | tried this app | 이 애플리케이션을 사용해 보았/이 앱 써 봤 | このアプリケーションを使用した/このアプリを使った | 试用了这个应用程序/用了这个软件 |
    nilijaribu programu hii/nilitumia programu hii
""")
TOPIC_WEIGHTS = {False: (10, 15, 30, 25, 12, 8), True: (30, 15, 10, 7, 16, 22)}     # translated, native

TIMES = table("en ko ja zh sw", """
yesterday | yesterday | 어제 | 昨日/きのう | 昨天 | jana
last_week | last week | 지난주에/저번 주에 | 先週 | 上周/上个星期 | wiki iliyopita
weekend | last weekend | 지난 주말에/저번 주말에 | 先週末/この前の週末 | 上周末/上个周末 | mwishoni mwa wiki iliyopita/wikendi iliyopita
month | last month | 지난달에/저번 달에 | 先月 | 上个月 | mwezi uliopita
friday | on Friday | 금요일에 | 金曜日に | 星期五/周五 | siku ya Ijumaa/Ijumaa
two_days | two days ago | 이틀 전에/그저께 | 二日前に/おととい | 两天前/前天 | siku mbili zilizopita/juzi
holidays | during the holidays | 휴가 동안/휴가 때 | 休暇中に/休みの間に | 假期里/放假的时候 | wakati wa likizo/likizoni
last_year | last year | 작년에 | 昨年/去年 | 去年 | mwaka jana
""")
ADJUNCTS = table("kinds en ko ja zh sw", """
family | PF | with my family | 가족과 함께/가족이랑 | 家族と一緒に/家族と | 和家人一起/跟家里人一起 |
    pamoja na familia yangu/na familia yangu
friends | PF | with friends | 친구들과 함께/친구들이랑 | 友人たちと一緒に/友達と | 和朋友们一起/跟朋友一起 |
    pamoja na marafiki/na marafiki zangu
sister | PFB | with my younger sister | 여동생과 함께/여동생이랑 | 妹と一緒に/妹と | 和妹妹一起/跟妹妹一起 |
    pamoja na dada yangu mdogo/na dada yangu mdogo
colleague | PF | with a colleague | 동료와 함께/회사 동료랑 | 同僚と一緒に/会社の人と | 和一位同事一起/跟同事一起 |
    pamoja na mfanyakazi mwenzangu/na mwenzangu wa kazini
alone | PF | alone/by myself | 혼자서/혼자 | 一人で | 独自/一个人 | peke yangu
advice | PFB | on a friend's advice | 친구의 추천으로/친구 추천으로 | 友人の勧めで/友達に勧められて | 在朋友的推荐下/听朋友推荐 |
    kwa ushauri wa rafiki
first | PFB | for the first time | 처음으로/처음 | 初めて | 第一次/头一次 | kwa mara ya kwanza
reviews | PFB | after reading good reviews | 좋은 평가를 읽고/좋은 후기 보고 | 良い評価を読んで/いい口コミを見て | 读了好评之后/看到好评以后 |
    baada ya kusoma maoni mazuri
""")
# Aspects: an English plural carries *, a Swahili noun its class; concepts lists the adjectives that fit it.
ASPECTS = table("topics concepts en ko ja zh sw", """
food | restaurant | tasty untasty cold | food | 음식 | 料理 | 菜 | chakula 7
soup | restaurant | drinkable undrinkable cold | soup | 수프/국물 | スープ | 汤 | supu 9/mchuzi 3
coffee | restaurant | drinkable undrinkable | coffee | 커피 | コーヒー | 咖啡 | kahawa 9
staff | restaurant hotel | kind rude | *staff | 직원들/직원분들 | スタッフ/店員さん | 员工/服务员 | wafanyakazi 2/wahudumu 2
service | restaurant hotel | fast slow | service | 서비스 | サービス | 服务 | huduma 9
dining_room | restaurant | clean dirty quiet noisy spacious cramped | dining room | 실내/가게 안 | 店内 | 店内/店里 |
    ukumbi 11
price | restaurant hotel book phone app | cheap expensive | price | 가격 | 価格/値段 | 价格/价钱 | bei 9
room | hotel | clean dirty quiet noisy spacious cramped bright dark | room | 객실/방 | 客室/部屋 | 客房/房间 | chumba 7
bed | hotel | comfortable hard | bed | 침대 | ベッド | 床 | kitanda 7
bathroom | hotel | clean dirty spacious cramped | bathroom | 욕실/화장실 | 浴室/お風呂 | 浴室/卫生间 | bafu 5
breakfast | hotel | tasty untasty cold | breakfast | 아침 식사/조식 | 朝食/朝ごはん | 早餐/早饭 |
    kifungua kinywa 7/chakula cha asubuhi 7
location | hotel | good bad | location | 위치 | 立地/場所 | 位置 | eneo 5
view | hotel | beautiful bad | view | 전망/경치 | 眺め/景色 | 景色/风景 | mandhari 9
story | film book | interesting boring | story/plot | 줄거리/이야기 | 物語/話 | 故事/剧情 | hadithi 9
acting | film | excellent poor | acting | 연기 | 演技 | 演技/表演 | uigizaji 11
music | film | beautiful moving boring | music | 음악 | 音楽 | 音乐 | muziki 3
ending | film book | moving predictable | ending | 결말 | 結末 | 结局 | mwisho 3
dialogue | film | interesting boring predictable | dialogue | 대사 | 台詞/セリフ | 台词/对白 | mazungumzo 6
characters | book | interesting boring | *characters | 등장인물/인물들 | 登場人物/キャラクター | 人物/角色 | wahusika 2
writing | book | beautiful poor | writing | 문장/글 | 文章 | 文笔 | lugha 9
pictures | book | beautiful poor | *pictures | 삽화/그림 | 挿絵/絵 | 插图/图画 | picha 10
opening | book | interesting boring | opening | 도입부/앞부분 | 冒頭/出だし | 开头 | mwanzo 3
screen | phone | big small bright dark | screen | 화면 | 画面 | 屏幕 | skrini 9
battery | phone | long short | battery life | 배터리 수명/배터리 시간 | 電池寿命/バッテリーの時間 | 电池续航/续航时间 | muda wa betri 3
design | phone app | beautiful ugly | design | 디자인 | デザイン | 设计/外观 | muundo 3
sound | phone | good bad | sound quality | 음질/소리 | 音質/音 | 音质/声音 | ubora wa sauti 11/sauti 9
delivery | phone | fast slow | delivery | 배송 | 配送 | 配送/送货 | usafirishaji 11
camera | phone | good bad | camera | 카메라 | カメラ | 相机/摄像头 | kamera 9
menu | app | easy awkward | menu | 메뉴 | メニュー | 菜单 | menyu 9
loading | app | fast slow | loading | 로딩 | 読み込み | 加载 | upakiaji 11
support | app | kind rude | *support staff | 고객 지원 직원/고객센터 직원 | サポート担当者/サポートの人 | 客服人员/客服 |
    wahudumu wa wateja 2
search | app | easy awkward fast slow | search function | 검색 기능/검색 | 検索機能/検索 | 搜索功能 | utafutaji 11
""")
# Concepts: ko 'present stem:past stem'; ja na-adjectives end in な; sw -x agrees, @x takes the class's -a.
CONCEPTS = table("sign en ko ja zh sw", """
tasty | + | delicious/tasty | 맛있:맛있었 | おいしい/うまい | 好吃/美味 | -tamu
untasty | - | bad/awful | 맛없:맛없었 | まずい | 难吃 | -baya
drinkable | + | delicious/tasty | 맛있:맛있었 | おいしい/うまい | 好喝 | -tamu
undrinkable | - | bad/awful | 맛없:맛없었 | まずい | 难喝 | -baya
cold | - | cold | 차갑:차가웠 | 冷たい | 凉/冷 | baridi
kind | + | kind/friendly | 친절하:친절했/상냥하:상냥했 | 親切な/感じがいい | 友善/热情 | -karimu/-kunjufu
rude | - | rude/unfriendly | 무례하:무례했/불친절하:불친절했 | 失礼な/感じが悪い | 粗鲁/没礼貌 | -jeuri
fast | + | fast/quick | 빠르:빨랐 | 速い | 快/迅速 | @haraka
slow | - | slow | 느리:느렸 | 遅い | 慢 | @polepole
clean | + | clean | 깨끗하:깨끗했/깔끔하:깔끔했 | 清潔な/きれいな | 干净/整洁 | safi
dirty | - | dirty/filthy | 더럽:더러웠/지저분하:지저분했 | 不潔な/汚い | 脏/脏乱 | -chafu
quiet | + | quiet | 조용하:조용했 | 静かな | 安静/清静 | kimya
noisy | - | noisy/loud | 시끄럽:시끄러웠 | 騒がしい/うるさい | 嘈杂/吵 | na kelele
spacious | + | spacious | 넓:넓었/널찍하:널찍했 | 広い | 宽敞/大 | -kubwa
cramped | - | small/cramped | 좁:좁았 | 狭い | 狭小/小 | -dogo
bright | + | bright | 밝:밝았/환하:환했 | 明るい | 明亮/亮 | na mwanga
dark | - | dark | 어둡:어두웠/컴컴하:컴컴했 | 暗い | 昏暗/暗 | na giza
comfortable | + | comfortable | 편안하:편안했/편하:편했 | 快適な/寝心地がいい | 舒适/舒服 | @starehe
hard | - | hard | 딱딱하:딱딱했 | 硬い | 硬 | -gumu
good | + | good/great | 좋:좋았/괜찮:괜찮았 | 良い/いい | 好/不错 | -zuri
bad | - | bad/terrible | 나쁘:나빴/별로이:별로였 | 悪い/ひどい | 差/糟糕 | -baya
cheap | + | reasonable/low | 저렴하:저렴했/싸:쌌 | 手頃な/安い | 合理/便宜 | nafuu
expensive | - | high | 비싸:비쌌 | 高い | 高/贵 | ghali
beautiful | + | beautiful/lovely | 아름답:아름다웠/예쁘:예뻤 | 美しい/きれいな | 美丽/漂亮 | @kupendeza
ugly | - | ugly | 촌스럽:촌스러웠/별로이:별로였 | 格好悪い/ダサい | 难看/丑 | -baya
interesting | + | interesting/fun | 흥미롭:흥미로웠/재미있:재미있었 | 興味深い/面白い | 有趣/有意思 | @kuvutia
boring | - | boring/dull | 지루하:지루했/재미없:재미없었 | 退屈な/つまらない | 无聊/没意思 | @kuchosha
moving | + | moving/touching | 감동적이:감동적이었/뭉클하:뭉클했 | 感動的な | 感人/动人 | @kugusa moyo
predictable | - | predictable | 뻔하:뻔했 | ありきたりな/ベタな | 老套/俗套 | @kutabirika
excellent | + | excellent/superb | 훌륭하:훌륭했/뛰어나:뛰어났 | 素晴らしい/見事な | 出色/棒 | @hali ya juu
poor | - | poor/weak | 어설프:어설펐/엉성하:엉성했 | 下手な/いまいちな | 差/糟糕 | dhaifu
big | + | big/large | 크:컸/큼직하:큼직했 | 大きい | 大 | -kubwa
small | - | small/tiny | 작:작았 | 小さい | 小 | -dogo
long | + | long | 길:길었 | 長い | 长 | -refu
short | - | short | 짧:짧았 | 短い | 短 | -fupi
easy | + | easy to use/handy | 편리하:편리했/편하:편했 | 便利な/使いやすい | 好用/方便 | rahisi kutumia
awkward | - | hard to use/awkward | 불편하:불편했 | 不便な/使いにくい | 难用 | -gumu kutumia
""")
VERDICTS = table("sign kinds en ko ja zh sw", """
recommend | + | PFB | I would recommend it | 추천하고 싶 | おすすめしたい/ぜひおすすめしたい | 我愿意推荐给别人/值得推荐 |
    ningependekeza kwa wengine/napendekeza kwa kila mtu
not_recommend | - | PFB | I would not recommend it | 추천하고 싶지 않/추천은 못 하겠 | おすすめしたくない/おすすめできない | 我不愿意推荐给别人/不推荐 |
    nisingependekeza kwa wengine/sipendekezi kwa mtu yeyote
satisfied | + | PFB | I was satisfied | 만족했/만족스러웠 | 満足な/大満足な | 我感到满意/挺满意的 | niliridhika/nimeridhika
disappointed | - | PFB | I was disappointed | 실망했/실망스러웠 | 残念な/期待外れな | 我感到失望/挺失望的 |
    nilikatishwa tamaa/nimevunjika moyo
worth | + | PFB | my money was not wasted | 돈이 아깝지 않았 | お金は無駄ではなかった/お金がもったいなくなかった | 我的钱没有白花/钱没白花 |
    pesa zangu hazikupotea bure
waste | - | PFB | my money was wasted | 돈이 아까웠 | お金は無駄な/お金がもったいなかった | 我的钱白花了/钱白花了 | pesa zangu zilipotea bure
no_regret | + | PFB | I do not regret it | 후회가 없/후회 없 | 後悔はない/後悔してない | 我不后悔/一点都不后悔 | sijutii
regret | - | PFB | I regret it | 후회하고 있/후회스러웠 | 後悔している/後悔しかない | 我很后悔/真后悔 | ninajuta/najuta
again | + | P | I would go again | 다시 가고 싶/또 가고 싶 | また行きたい | 我还想再去/下次还来 | ningependa kwenda tena/nitarudi tena
never | - | P | I would not go again | 다시 가고 싶지 않/두 번은 못 가겠 | もう行きたくない/二度と行きたくない | 我不想再去了/下次不来了 |
    nisingependa kwenda tena/sitarudi tena
""")
VERY = ["very", "really"]
HONEST = {"en": ["honestly", "frankly"], "ko": ["솔직히 말해서", "솔직히"], "ja": ["正直に言うと", "正直"],
          "zh": ["坦率地说", "说实话"], "sw": ["kusema kweli", "kwa kweli"]}


class Voice:
    """One speaker: a translator always takes the first synonym, a native keeps to choices of their own."""

    def __init__(self, native=False, rng=None, casual=False):
        self.native, self.rng, self.habits = native, rng, {}
        if native:
            self.polite, self.tail = rng.random() < 0.7, rng.randrange(3)
        else:
            self.polite, self.tail = not casual, 0

    def __call__(self, synonyms):
        if not self.native or len(synonyms) == 1:
            return synonyms[0]
        if id(synonyms) not in self.habits:            # the lists live as long as their tables
            own = self.rng.random() < NATIVE_WORDS
            self.habits[id(synonyms)] = self.rng.choice(synonyms[1:]) if own else synonyms[0]
        return self.habits[id(synonyms)]

    def either(self, translated, *native):
        if not self.native:
            return translated
        if native not in self.habits:
            self.habits[native] = self.rng.choice(native)
        return self.habits[native]


# Korean: a particle looks at the final consonant, an ending at the stem's last syllable.
def josa(word, with_final, without):
    return word + (with_final if (ord(word[-1]) - 0xAC00) % 28 else without)


def ko_open(past):
    """Past stem to the 아/어 form: 친절했 to 친절해 (the final ㅆ falls)."""
    code = ord(past[-1]) - 0xAC00
    return past + "아" if past[-1] == "않" else past[:-1] + chr(0xAC00 + code - code % 28)


def ko_end(stem, v, intro=False):
    if not v.native:
        return stem + ("습니다." if v.polite else "다.")
    if v.tail == 2 and not intro:
        return stem + "네요."
    if v.tail == 1 and not v.polite:
        return stem + "음."
    return stem + ("아요." if stem[-1] in "않좋" else "어요.")


# Japanese: i-adjectives inflect, na-adjectives take the copula; a verdict may also end in a verb form.
JA_POLITE = (("に行った", "に行きました"), ("った", "いました"), ("した", "しました"), ("見た", "見ました"),
             ("んだ", "みました"), ("いる", "います"))


def ja_adjective(word, negative, form, v):
    na, stem = word.endswith("な"), word[:-1]
    if word.endswith("いい"):
        stem = word[:-2] + "よ"
    deny = ("ではな" if not v.native else "じゃな") if na else "くな"
    if form == "and":
        if negative:
            return stem + deny + v.either("く、", "くて、")
        return stem + ("で、" if na else v.either("く、", "くて、"))
    if form == "because" and v.native and not negative:
        return stem + ("で、" if na else "くて、")
    plain = stem + (deny + "かった" if negative else "だった" if na else "かった")
    if form == "because":
        return plain + "ので、"
    polite = stem + "でした" if na and not negative else plain + "です"
    return polite if v.polite and not (form == "but" and v.native) else plain


def ja_sentence(plain, v):
    """Close a sentence that ends in a plain past verb, an i-adjective, or a na-adjective with its な."""
    if plain.endswith("な"):
        return plain[:-1] + ("でした" if v.polite else "だった") + "。"
    if not v.polite:
        return plain + "。"
    if plain.endswith(("い", "かった")):
        return plain + "です。"
    old, new = next(pair for pair in JA_POLITE if plain.endswith(pair[0]))
    return plain[:-len(old)] + new + "。"


# Swahili: the class of the noun decides the prefix of the adjective, of the copula and of -a.
SW_SUBJECT = {1: "a", 2: "wa", 3: "u", 4: "i", 5: "li", 6: "ya", 7: "ki", 8: "vi", 9: "i", 10: "zi", 11: "u"}
SW_OF = {1: "wa", 2: "wa", 3: "wa", 4: "ya", 5: "la", 6: "ya", 7: "cha", 8: "vya", 9: "ya", 10: "za",
         11: "wa"}
SW_ADJECTIVE = {1: "m", 2: "wa", 3: "m", 4: "mi", 5: "", 6: "ma", 7: "ki", 8: "vi", 11: "m"}
SW_NASAL = {"zuri": "nzuri", "baya": "mbaya", "dogo": "ndogo", "refu": "ndefu"}      # classes 9 and 10


def sw_agree(adjective, noun_class):
    if adjective[0] == "@":
        return SW_OF[noun_class] + " " + adjective[1:]
    if adjective[0] != "-":
        return adjective
    stem = adjective[1:]
    return SW_NASAL.get(stem, stem) if noun_class in (9, 10) else SW_ADJECTIVE[noun_class] + stem


def sw_copula(noun_class, negative):
    if negative:
        return "hakuwa" if noun_class == 1 else "ha" + SW_SUBJECT[noun_class] + "kuwa"
    return SW_SUBJECT[noun_class] + "likuwa"


def capital(text):
    return text[0].upper() + text[1:]


# Sentiment: a review is one or two clauses, maybe an introduction, maybe a verdict.
@dataclass(frozen=True)
class Clause:
    aspect: str
    concept: str
    negative: bool = False
    degree: str = ""           # "", "very" ("at all" under negation), or "bit"

    def positive(self):
        return (CONCEPTS[self.concept]["sign"] == "+") != self.negative


@dataclass(frozen=True)
class Review:
    topic: str
    intro: tuple               # (time, adjunct), or ()
    clauses: tuple             # the last one decides; the first is conceded when link is "but" or "although"
    link: str                  # "", "and", "but", "although"
    verdict: str = ""          # same sign as the last clause
    because: bool = False      # the verdict follows from the last clause in one sentence
    honest: bool = False
    casual: bool = False       # register of the translation

    def label(self):
        return "positive" if self.clauses[-1].positive() else "negative"


def sample_clause(rng, topic, positive, but_not=""):
    aspects = [a for a, row in ASPECTS.items() if topic in row["topics"].split() and a != but_not]
    negative = rng.random() < 0.25
    while True:
        aspect = rng.choice(aspects)
        fits = [c for c in ASPECTS[aspect]["concepts"].split()
                if (CONCEPTS[c]["sign"] == "+") == (positive != negative)]
        if fits:
            break
    concept, degree = rng.choice(fits), rng.choice(("", "", "very"))
    if CONCEPTS[concept]["sign"] == "-" and not negative and rng.random() < 0.3:
        degree = "bit"
    return Clause(aspect, concept, negative, degree)


def sample_review(rng, label, native):
    positive = label == "positive"
    topic = rng.choices(list(TOPICS), TOPIC_WEIGHTS[native])[0]
    kind = TOPICS[topic]["kind"]
    link = rng.choices(("", "and", "but", "although"), (38, 22, 25, 15))[0]
    last = sample_clause(rng, topic, positive)
    clauses = (last,)
    if link:
        clauses = (sample_clause(rng, topic, positive != (link != "and"), last.aspect), last)
    verdict, intro = "", ()
    if rng.random() < 0.45:
        verdict = rng.choice([k for k, row in VERDICTS.items()
                              if kind in row["kinds"] and (row["sign"] == "+") == positive])
    if rng.random() < 0.3 or not (verdict or link):
        adjuncts = [k for k, row in ADJUNCTS.items() if kind in row["kinds"]]
        intro = rng.choice(list(TIMES)), rng.choice(adjuncts)
    because = bool(verdict) and link in ("", "but") and last.degree != "bit" and rng.random() < 0.5
    return Review(topic, intro, clauses, link, verdict, because, rng.random() < 0.15, rng.random() < 0.7)


def en_review(m, v):
    def clause(c):
        noun, adjective = v(ASPECTS[c.aspect]["en"]), v(CONCEPTS[c.concept]["en"])
        be = ("were" if noun[0] == "*" else "was") + (" not" if c.negative else "")
        if m.because and c is m.clauses[-1] and not c.negative:
            adjective = "so " + adjective
        elif c.degree:
            adjective = (adjective + " at all" if c.negative else "a bit " + adjective if c.degree == "bit"
                         else v(VERY) + " " + adjective)
        return f"the {noun.lstrip('*')} {be} {adjective}"
    text = [clause(c) for c in m.clauses]
    core = {"": "{0}", "and": "{0} and {1}", "but": "{0}, but {1}", "although": "although {0}, {1}"}[m.link]
    if m.link == "although" and v.rng.random() < 0.5:
        core = "{1}, although {0}"
    core = core.format(*text)
    verdict = v(VERDICTS[m.verdict]["en"]) if m.verdict else ""
    if m.because:
        core += (", so " if m.clauses[-1].negative else " that ") + verdict
    out = [(v(HONEST["en"]) + ", " if m.honest else "") + core]
    if m.intro:
        when, how = v(TIMES[m.intro[0]]["en"]), v(ADJUNCTS[m.intro[1]]["en"])
        out.insert(0, f"{when} I {v(TOPICS[m.topic]['en'])} {how}")
    if verdict and not m.because:
        out.append(verdict)
    return " ".join(capital(sentence) + "." for sentence in out)


def ko_review(m, v):
    def clause(c, first):
        noun = v(ASPECTS[c.aspect]["ko"])
        words = CONCEPTS[c.concept]["ko"]
        present, past = (words[0] if c.negative else v(words)).split(":")
        degree = {"": "", "bit": v.either("조금 ", "좀 ", "약간 "),
                  "very": "전혀 " if c.negative else v.either("매우 ", "정말 ", "진짜 ", "너무 ")}[c.degree]
        if c.negative:
            present, past = present + "지 않", present + v.either("지 않았", "지 않았", "진 않았")
        if m.link in ("but", "although"):
            subject = josa(noun, "은", "는")
        elif v.native:
            subject = noun if first else noun + "도"
        else:
            subject = josa(noun, "이", "가")
        lead = f"{subject} {degree}"
        if not first and m.because:
            return lead + ko_open(past) + "서 " + ko_end(v(VERDICTS[m.verdict]["ko"]), v)
        if not first:
            return lead + ko_end(past, v)
        return lead + ((present if v.native else past) + "고" if m.link == "and"
                       else past + ("는데" if v.native else "지만"))
    core = " ".join(clause(c, c is not m.clauses[-1]) for c in m.clauses)
    out = [(v(HONEST["ko"]) + (" " if v.native else ", ") if m.honest else "") + core]
    if m.intro:
        when, how = v(TIMES[m.intro[0]]["ko"]), v(ADJUNCTS[m.intro[1]]["ko"])
        out.insert(0, f"{when} {v.either('나는 ', '')}{how} {ko_end(v(TOPICS[m.topic]['ko']), v, True)}")
    if m.verdict and not m.because:
        out.append(v.either("나는 ", "") + ko_end(v(VERDICTS[m.verdict]["ko"]), v))
    return " ".join(out)


def ja_review(m, v):
    def clause(c, first):
        noun = v(ASPECTS[c.aspect]["ja"])
        word = CONCEPTS[c.concept]["ja"][0] if c.negative else v(CONCEPTS[c.concept]["ja"])
        degree = {"": "", "bit": v.either("少し", "ちょっと"),
                  "very": v.either("まったく", "全然") if c.negative else v.either("非常に", "とても", "すごく")}
        form = ("and" if m.link == "and" else "but") if first else "because" if m.because else "end"
        text = f"{noun}{'も' if v.native and m.link == 'and' and not first else 'は'}{degree[c.degree]}"
        text += ja_adjective(word, c.negative, form, v)
        if form == "but":
            return text + v.either("が、", "けど、")
        if form == "because":
            return text + ja_sentence(v(VERDICTS[m.verdict]["ja"]), v)
        return text + ("ね。" if v.native and v.polite and v.tail and not first else "。" if not first else "")
    out = "".join(clause(c, c is not m.clauses[-1]) for c in m.clauses)
    if m.honest:
        out = v(HONEST["ja"]) + "、" + out
    if m.intro:
        when, how = v(TIMES[m.intro[0]]["ja"]), v(ADJUNCTS[m.intro[1]]["ja"])
        out = f"{when}、{v.either('私は', '')}{how}{ja_sentence(v(TOPICS[m.topic]['ja']), v)}" + out
    if m.verdict and not m.because:
        out += v.either("" if "は" in VERDICTS[m.verdict]["ja"][0] else "私は", "") + ja_sentence(
            v(VERDICTS[m.verdict]["ja"]), v)
    return out


def zh_review(m, v):
    def clause(c, first):
        noun = v(ASPECTS[c.aspect]["zh"])
        adjective = CONCEPTS[c.concept]["zh"][0] if c.negative else v(CONCEPTS[c.concept]["zh"])
        also = "也" if m.link == "and" and not first else ""
        if c.negative:
            deny = v.either("一点也不", "一点都不") if c.degree else v.either("不" if also else "并不", "不")
            return noun + also + deny + adjective
        if c.degree == "bit":
            return noun + also + v.either("有些", "有点") + adjective
        if c.degree == "very" or (m.because and not first):
            return noun + also + v.either("非常", "特别", "真的很") + adjective
        return noun + also + (f"挺{adjective}的" if v.native and v.tail else f"很{adjective}")
    text = [clause(c, c is not m.clauses[-1]) for c in m.clauses]
    if m.link in ("but", "although"):
        core = f"虽然{text[0]}，但是{text[1]}" if not v.native else f"{text[0]}，{v.either('', '不过', '但')}{text[1]}"
    else:
        core = "，".join(text)
    verdict = v(VERDICTS[m.verdict]["zh"]) if m.verdict else ""
    if m.because:
        core += v.either("，因此", "，", "，所以") + verdict
    out = (v(HONEST["zh"]) + "，" if m.honest else "") + core + "。"
    if m.intro:
        when, how = v(TIMES[m.intro[0]]["zh"]), v(ADJUNCTS[m.intro[1]]["zh"])
        out = f"{when}{v.either('，我', '')}{how}{v(TOPICS[m.topic]['zh'])}{v.either('。', '，', '。')}" + out
    return out + (verdict + "。" if verdict and not m.because else "")


def sw_review(m, v):
    def clause(c):
        noun, number = v(ASPECTS[c.aspect]["sw"]).rsplit(" ", 1)
        number, adjective = int(number), v(CONCEPTS[c.concept]["sw"])
        degree = {"": "", "bit": " kidogo",
                  "very": v.either(" hata kidogo", " kabisa") if c.negative else " sana"}
        strong = m.because and c is m.clauses[-1] and not c.negative
        return (f"{noun} {sw_copula(number, c.negative)} {sw_agree(adjective, number)}"
                f"{' sana' if strong else degree[c.degree]}")
    text = [clause(c) for c in m.clauses]
    core = {"": "{0}", "and": "{0} " + v.either("na", "na pia") + " {1}",
            "but": "{0}, " + v.either("lakini", "ila") + " {1}",
            "although": v.either("ingawa", "japokuwa") + " {0}, {1}"}[m.link].format(*text)
    verdict = v(VERDICTS[m.verdict]["sw"]) if m.verdict else ""
    if m.because:
        core += (", kwa hiyo " if v.native or m.clauses[-1].negative else " hivi kwamba ") + verdict
    out = [(v(HONEST["sw"]) + ", " if m.honest else "") + core]
    if m.intro:
        when, how = v(TIMES[m.intro[0]]["sw"]), v(ADJUNCTS[m.intro[1]]["sw"])
        out.insert(0, f"{when} {v(TOPICS[m.topic]['sw'])} {how}")
    if verdict and not m.because:
        out.append(verdict)
    return " ".join(capital(sentence) + "." for sentence in out)


# Lexicon of the scenes. Columns under and opposite hold keys of the same table.
AGENTS = table("under opposite en ko ja zh sw", """
boy | child | girl | boy,boys | 소년/남자아이 | 少年/男の子 | 男孩/男孩子 | mvulana,wavulana
girl | child | boy | girl,girls | 소녀/여자아이 | 少女/女の子 | 女孩/小姑娘 | msichana,wasichana
man | adult | woman | man,men | 남성/남자 | 男性/男の人 | 男人/男士 | mwanamume,wanaume
woman | adult | man | woman,women | 여성/여자 | 女性/女の人 | 女人/女士 | mwanamke,wanawake
student | person | teacher | student,students | 학생 | 学生 | 学生 | mwanafunzi,wanafunzi
teacher | person | student | teacher,teachers | 교사/선생님 | 教師/先生 | 教师/老师 | mwalimu,walimu
doctor | person | farmer | doctor,doctors | 의사 | 医師/お医者さん | 医生/大夫 | daktari,madaktari
farmer | person | doctor | farmer,farmers | 농부 | 農夫/農家の人 | 农夫/农民 | mkulima,wakulima
child | person | adult | child,children | 어린이/아이 | 子供/子ども | 孩子/小孩 | mtoto,watoto
adult | person | child | adult,adults | 성인/어른 | 成人/大人 | 成年人/大人 | mtu mzima,watu wazima
person | | | person,people | 사람 | 人 | 人 | mtu,watu
""")
# Looks; clothes are every colour of every garment and are added below.
LOOKS = table("opposites en ko ja zh sw", """
tall | short | tall | 키가 큰/키 큰 | 背の高い/背が高い | 高个子的/高高的 | mrefu,warefu
short | tall | short | 키가 작은/키 작은 | 背の低い/背が低い | 矮个子的/矮矮的 | mfupi,wafupi
happy | sad | happy | 행복해 보이는/기분 좋아 보이는 | 幸せそうな/うれしそうな | 高兴的/开心的 | mwenye furaha,wenye furaha
sad | happy | sad | 슬퍼 보이는 | 悲しそうな | 悲伤的/难过的 | mwenye huzuni,wenye huzuni
""")
COLOURS = table("en ko ja zh sw", """
red | red | 빨간 | 赤い | 红 | jekundu,mekundu,nyekundu,nyekundu
blue | blue | 파란 | 青い | 蓝 | la bluu,ya bluu,ya bluu,za bluu
white | white | 하얀 | 白い | 白 | jeupe,meupe,nyeupe,nyeupe
black | black | 검은 | 黒い | 黑 | jeusi,meusi,nyeusi,nyeusi
""")
# Garments: Swahili gives singular and plural and where their colour stands in the row above.
GARMENTS = table("en ko ja zh sw", """
shirt | shirt,shirts | 셔츠_를 입은 | シャツ_を着た | 穿,衬衫 | shati,mashati,0,1
hat | hat,hats | 모자_를 쓴 | 帽子_をかぶった | 戴,帽子 | kofia,kofia,2,3
coat | coat,coats | 코트_를 입은 | コート_を着た | 穿,外套 | koti,makoti,0,1
""")
# Actions: under names the general one; kind says what excludes what; places are keys of PLACES.
# ko: _ stands before an object particle that native speech drops. sw: affirmative verb,negative verb,object.
ACTIONS = table("under kind places en ko ja zh sw", """
apples | fruit | F | kcfvogpbdw | eating apples | 사과_를 먹 | りんごを食べて | 吃苹果 | kula,li,matufaha
bananas | fruit | F | kcfvogpbdw | eating bananas | 바나나_를 먹 | バナナを食べて | 吃香蕉 | kula,li,ndizi
oranges | fruit | F | kcfvogpbdw | eating oranges | 오렌지_를 먹 | オレンジを食べて | 吃橙子 | kula,li,machungwa
fruit | | F | kcfvogpbdw | eating fruit | 과일_을 먹 | 果物を食べて/フルーツを食べて | 吃水果 | kula,li,matunda
coffee | hot | F | kfvogpbh | drinking coffee | 커피_를 마시 | コーヒーを飲んで | 喝咖啡 | nywa,nywi,kahawa
tea | hot | F | kfvogpbh | drinking tea | 차_를 마시 | お茶を飲んで | 喝茶 | nywa,nywi,chai
cocoa | hot | F | kfvogpbh | drinking cocoa | 코코아_를 마시 | ココアを飲んで | 喝可可 | nywa,nywi,kakao
hot | | F | kfvogpbh | having a hot drink | 따뜻한 음료_를 마시 | 温かい飲み物を飲んで | 喝热饮 | nywa,nywi,kinywaji cha moto
guitar | instrument | A | cfvgpbsw | playing the guitar | 기타_를 연주하/기타_를 치 | ギターを演奏して/ギターを弾いて | 弹吉他 |
    piga,pigi,gitaa
violin | instrument | A | cfvgpbsw | playing the violin | 바이올린_을 연주하/바이올린_을 켜 | バイオリンを演奏して/バイオリンを弾いて | 拉小提琴 |
    piga,pigi,fidla
drums | instrument | A | cfvgpbsw | playing the drums | 드럼_을 연주하/드럼_을 치 | ドラムを演奏して/ドラムを叩いて | 打鼓/敲鼓 |
    piga,pigi,ngoma
instrument | | A | cfvgpbsw | playing an instrument | 악기_를 연주하 | 楽器を演奏して | 演奏乐器 | piga,pigi,ala ya muziki
football | ball | M | pbds | playing football | 축구_를 하 | サッカーをして | 踢足球 |
    cheza,chezi,mpira wa miguu/cheza,chezi,soka
basketball | ball | M | pbds | playing basketball | 농구_를 하 | バスケットボールをして/バスケをして | 打篮球 |
    cheza,chezi,mpira wa kikapu
volleyball | ball | M | pbds | playing volleyball | 배구_를 하 | バレーボールをして/バレーをして | 打排球 |
    cheza,chezi,mpira wa wavu
ball | | M | pbds | playing a ball game | 공놀이_를 하 | 球技をして | 进行球类运动/玩球 | cheza,chezi,mchezo wa mpira
book | reading | A | clfhvogpb | reading a book | 책_을 읽 | 本を読んで | 看书 | soma,somi,kitabu
newspaper | reading | A | clfhvogpb | reading a newspaper | 신문_을 읽/신문_을 보 | 新聞を読んで | 看报纸 | soma,somi,gazeti
letter | reading | A | clfhvogpb | reading a letter | 편지_를 읽 | 手紙を読んで | 看信 | soma,somi,barua
reading | | A | clfhvogpb | reading something | 무언가_를 읽/뭔가_를 읽 | 何かを読んで | 阅读 | soma,somi,kitu
shoes | goods | B | mst | buying shoes | 신발_을 구입하/신발_을 사 | 靴を購入して/靴を買って | 买鞋/买鞋子 | nunua,nunui,viatu
flowers | goods | B | mst | buying flowers | 꽃_을 구입하/꽃_을 사 | 花を購入して/花を買って | 买花 | nunua,nunui,maua
bread | goods | B | mst | buying bread | 빵_을 구입하/빵_을 사 | パンを購入して/パンを買って | 买面包 | nunua,nunui,mkate
goods | | B | mst | buying something | 물건_을 구입하/물건_을 사 | 何かを購入して/買い物をして | 买东西 | nunua,nunui,kitu
bicycle | | M | psbdw | riding a bicycle | 자전거_를 타 | 自転車に乗って | 骑自行车/骑单车 | endesha,endeshi,baiskeli
motorcycle | | M | sbdw | riding a motorcycle | 오토바이_를 타 | バイクに乗って | 骑摩托车 | endesha,endeshi,pikipiki
sleep | | S | chvogpbwl | sleeping | 잠_을 자 | 眠って/寝て | 睡觉 | lala,lali,
run | | M | psbdw | running | 달리/뛰 | 走って | 跑步 | kimbia,kimbii,
swim | | M | reqa | swimming | 수영_을 하 | 泳いで | 游泳 | ogelea,ogelei,
dance | | M | cvgpbsd | dancing | 춤_을 추 | 踊って/ダンスをして | 跳舞 | cheza,chezi,dansi
sing | | V | cvgpbswf | singing | 노래_를 부르 | 歌を歌って | 唱歌 | imba,imbi,
cook | | W | kgbw | cooking | 요리_를 하 | 料理をして | 做饭/做菜 | pika,piki,chakula
dishes | | W | kfv | washing dishes | 그릇_을 씻/설거지_를 하 | 皿を洗って/皿洗いをして | 洗碗 | osha,oshi,vyombo
paint | | A | cvgpbwo | painting a picture | 그림_을 그리 | 絵を描いて | 画画 | chora,chori,picha
photos | | A | gpbswmc | taking photos | 사진_을 촬영하/사진_을 찍 | 写真を撮影して/写真を撮って | 拍照/照相 | piga,pigi,picha
movie | | A | cvo | watching a film | 영화_를 보 | 映画を見て | 看电影 | tazama,tazami,filamu/angalia,angalii,filamu
phone | | V | kfhvogpbsmt | talking on the phone | 전화 통화_를 하 | 電話で話して/電話して | 打电话 | ongea,ongei,kwa simu
""")
# Kinds of action that nobody does at once; two actions under one general action exclude each other too.
CLASHES = {"AS", "BS", "FS", "MS", "SV", "SW", "AM", "BM", "FM", "MW", "AW", "AB", "BW", "AA"}
PLACES = table("under en ko ja zh sw", """
k | I | in a kitchen | 주방/부엌 | 台所/キッチン | 厨房里 | katika jiko/jikoni
c | I | in a classroom | 교실 | 教室 | 教室里 | katika darasa/darasani
l | I | in a library | 도서관 | 図書館 | 图书馆里 | katika maktaba/maktabani
f | I | in a café | 카페 | 喫茶店/カフェ | 咖啡馆里/咖啡厅里 | katika mkahawa/mkahawani
h | I | in a hospital | 병원 | 病院 | 医院里 | katika hospitali/hospitalini
v | I | in a living room | 거실 | 居間/リビング | 客厅里 | katika sebule/sebuleni
o | I | in an office | 사무실 | 事務所/オフィス | 办公室里 | katika ofisi/ofisini
g | O | in a garden | 정원/마당 | 庭園/庭 | 花园里/院子里 | katika bustani/bustanini
p | O | in a park | 공원 | 公園 | 公园里 | katika bustani ya jiji/kwenye bustani ya jiji
b | O | on a beach | 해변/바닷가 | 浜辺/ビーチ | 海滩上/海边 | katika ufuo wa bahari/ufukweni
s | O | on a street | 거리/길 | 通り/道 | 街上/路上 | katika mtaa/mtaani
d | O | on a sports field | 운동장 | 運動場/グラウンド | 操场上 | katika uwanja wa michezo/uwanjani
w | O | in a forest | 숲/숲속 | 森/森の中 | 森林里/树林里 | katika msitu/msituni
m | | in a market | 시장 | 市場 | 市场里/集市上 | katika soko/sokoni
t | | in a shop | 상점/가게 | 商店/お店 | 商店里/店里 | katika duka/dukani
r | O | in a river | 강 | 川 | 河里 | katika mto/mtoni
e | O | in a lake | 호수 | 湖 | 湖里 | katika ziwa/ziwani
q | | in a swimming pool | 수영장 | プール | 游泳池里/泳池里 | katika bwawa la kuogelea/kwenye bwawa la kuogelea
a | O | in the sea | 바다 | 海 | 海里/大海里 | katika bahari/baharini
I | | indoors | 실내 | 屋内/室内 | 室内/屋里 | ndani ya jengo
O | | outdoors | 야외/밖 | 屋外/外 | 户外/外面 | nje
""")
EXTRAS = table("kind en ko ja zh sw", """
friends | W | with friends | 친구들과 함께/친구들이랑 | 友人たちと一緒に/友達と | 和朋友们一起/跟朋友一起 | pamoja na marafiki/na marafiki
neighbour | W | with a neighbour | 이웃과 함께/이웃 사람이랑 | 隣人と一緒に/近所の人と | 和邻居一起/跟邻居一起 | pamoja na jirani/na jirani
dog | W | with a dog | 개와 함께/강아지랑 | 犬と一緒に/犬と | 和狗一起/跟狗一起 | pamoja na mbwa/na mbwa
morning | T | in the morning | 아침에 | 朝に/朝 | 早上/早晨 | asubuhi
evening | T | in the evening | 저녁에 | 夕方に/夕方 | 傍晚/晚上 | jioni
rain | T | on a rainy day | 비가 오는 날에/비 오는 날 | 雨の日に | 在一个雨天/下雨天 | siku ya mvua
school | T | after school | 방과 후에/학교 끝나고 | 放課後に/学校が終わってから | 放学后/放学以后 | baada ya shule
dinner | T | before dinner | 저녁 식사 전에/저녁 먹기 전에 | 夕食の前に/晩ご飯の前に | 晚餐前/晚饭前 | kabla ya chakula cha jioni
""")
NUMBERS = {"en": "a two three four five six", "ko": "한 두 세 네 다섯 여섯", "ja": "一 二 三 四 五 六",
           "zh": "一 两 三 四 五 六", "sw": "mmoja wawili watatu wanne watano sita"}
NUMBERS = {lang: words.split() for lang, words in NUMBERS.items()}


# NLI: a scene is one caption; a pair is a premise and a copy of it that some edits have changed.
@dataclass(frozen=True)
class Scene:
    number: int
    agent: str
    action: str
    place: str = ""            # place and look are never both empty: captions of fewer slots run out
    look: str = ""             # key of LOOKS, or "colour garment"
    extra: str = ""
    bound: str = ""            # "", "least" (at least this number), "only"
    negative: bool = False
    casual: bool = False       # register of the translation


def under(rows, key):
    """The keys that the general key covers."""
    return [k for k, row in rows.items() if row["under"] == key]


def sample_scene(rng, native):
    turn = -1 if native else 1                     # native text prefers the other end of each table
    agent = rng.choices(list(AGENTS), [5, 5, 4, 4, 3, 3, 2, 2, 4, 3, 3][::turn])[0]
    action = rng.choices(list(ACTIONS), range(20, 20 + len(ACTIONS))[::turn])[0]
    place = rng.choice(ACTIONS[action]["places"]) if rng.random() < 0.85 else ""
    if place and PLACES[place]["under"] and rng.random() < 0.15:
        place = PLACES[place]["under"]
    look = ""
    if not place or rng.random() < 0.6:
        look = rng.choice(list(LOOKS) + [f"{c} {g}" for c in COLOURS for g in GARMENTS] * 2)
    extra = rng.choice(list(EXTRAS)) if rng.random() < 0.35 else ""
    number = rng.choices((1, 2, 3, 4, 5), (30, 25, 20, 15, 10))[0]
    return Scene(number, agent, action, place, look, extra, casual=rng.random() < 0.7)


def clash(a, b):
    one, two = ACTIONS[a], ACTIONS[b]
    if one["under"] and one["under"] == two["under"]:
        return a != b
    return a != two["under"] and b != one["under"] and "".join(sorted(one["kind"] + two["kind"])) in CLASHES


def other_action(s, rng):
    """An action that this scene rules out and that its place allows."""
    inside = under(PLACES, s.place) if s.place in ("I", "O") else s.place
    fits = [b for b, row in ACTIONS.items()
            if clash(s.action, b) and (not s.place or any(p in row["places"] for p in inside))]
    return rng.choice(fits) if fits else None


def other_place(s, rng):
    side = PLACES[s.place]["under"] or s.place
    fits = [p for p in ACTIONS[s.action]["places"]
            if p != s.place and (side not in "IO" or PLACES[p]["under"] != side or s.action == "swim")]
    return rng.choice(fits) if fits and s.place not in ("I", "O") else None


def other_look(s, rng, opposite):
    """A look that the present one excludes (opposite), or one that it leaves open."""
    if opposite:
        if " " not in s.look:
            return LOOKS[s.look]["opposites"] if s.look else None
        colour, garment = s.look.split()
        return rng.choice([c for c in COLOURS if c != colour]) + " " + garment
    if " " in s.look:
        return rng.choice(list(LOOKS))
    return rng.choice(list(COLOURS)) + " " + rng.choice(list(GARMENTS))


def pick_under(rows, key, rng):
    return rng.choice(under(rows, key) or [None])


# Edits: (slots they change, function of scene and rng giving their new values, None where it does not apply).
ENTAIL = {
    "drop_look": (("look",), lambda s, r: ("",) if s.look and s.place else None),
    "drop_place": (("place",), lambda s, r: ("",) if s.look and s.place else None),
    "drop_extra": (("extra",), lambda s, r: ("",) if s.extra else None),
    "wider_agent": (("agent",), lambda s, r: (AGENTS[s.agent]["under"] or None,)),
    "wider_action": (("action",), lambda s, r: (ACTIONS[s.action]["under"] or None,)),
    "wider_place": (("place",), lambda s, r: (PLACES[s.place]["under"] or None,) if s.place else None),
    "at_least": (("number", "bound"),
                 lambda s, r: (r.randint(2, s.number), "least") if s.number > 1 else None),
    "deny_other": (("action", "negative"), lambda s, r: (other_action(s, r), True)),
}
NEUTRAL = {
    "add_look": (("look",), lambda s, r: (other_look(s, r, False),)),
    "add_place": (("place",), lambda s, r: (r.choice(ACTIONS[s.action]["places"]),) if not s.place else None),
    "add_extra": (("extra",), lambda s, r: (r.choice(list(EXTRAS)),) if not s.extra else None),
    "narrow_agent": (("agent",), lambda s, r: (pick_under(AGENTS, s.agent, r),)),
    "narrow_action": (("action",), lambda s, r: (pick_under(ACTIONS, s.action, r),)),
    "narrow_place": (("place",), lambda s, r: (r.choice([p for p in ACTIONS[s.action]["places"]
                                                         if PLACES[p]["under"] == s.place]),)
                     if s.place in ("I", "O") else None),
}
CONTRADICT = {
    "other_look": (("look",), lambda s, r: (other_look(s, r, True),)),
    "other_agent": (("agent",), lambda s, r: (AGENTS[s.agent]["opposite"] or None,)),
    "other_action": (("action",), lambda s, r: (other_action(s, r),)),
    "other_place": (("place",), lambda s, r: (other_place(s, r),) if s.place else None),
    "deny": (("action", "negative"), lambda s, r: (s.action, True)),
    "more": (("number", "bound"), lambda s, r: (r.randint(s.number + 1, 6), "least")),
    "fewer": (("number", "bound"),
              lambda s, r: (r.randint(1, s.number - 1), "only") if s.number > 1 else None),
}
EDITS = {"entailment": ENTAIL, "neutral": NEUTRAL, "contradiction": CONTRADICT}
EDIT_WEIGHTS = {"deny_other": 1, "more": 0.5, "fewer": 0.5, "deny": 1.5, "narrow_agent": 2,
                "narrow_action": 2, "narrow_place": 2, "add_place": 2}


def sample_pair(rng, label, native):
    """Premise and hypothesis: one edit decides the label, up to two entailing or adding ones go with it."""
    while True:
        premise = hypothesis = sample_scene(rng, native)
        edits, touched = EDITS[label], set()
        main = rng.choices(list(edits), [EDIT_WEIGHTS.get(e, 1) for e in edits])[0]
        plan = [edits[main]] + [ENTAIL[e] for e in rng.sample(list(ENTAIL), 2) if rng.random() < 0.5]
        if label == "contradiction" and rng.random() < 0.4:
            plan.append(NEUTRAL["add_extra"])
        for i, (slots, edit) in enumerate(plan):
            values = edit(premise, rng)
            if values is None or None in values or touched & set(slots):
                if i == 0:
                    break
                continue
            changed = replace(hypothesis, **dict(zip(slots, values)))
            if i and not composes(main, changed, premise):
                continue
            hypothesis, touched = changed, touched | set(slots)
        if hypothesis != premise and (hypothesis.look or hypothesis.place):
            return premise, hypothesis


def composes(main, h, premise):
    """Whether a further edit leaves the label that the main one gave."""
    if main == "deny":
        return h.bound == "" and h.extra in ("", premise.extra)
    if main == "fewer":
        return not h.negative and h.extra in ("", premise.extra)
    # 'not sleeping' already covers any place and any company
    return not h.negative or main in ENTAIL or main in ("add_look", "narrow_agent")


def cell(rows, key, lang, v):
    return v(rows[key][lang]) if key else ""


def en_scene(s, v):
    number, plural = NUMBERS["en"][s.number - 1], s.number > 1
    noun = v(AGENTS[s.agent]["en"]).split(",")[plural]
    if " " in s.look:
        colour, garment = s.look.split()
        garment = v(GARMENTS[garment]["en"]).split(",")[plural]
        noun += f" in {colour} {garment}" if plural else f" in a {colour} {garment}"
    elif s.look:
        noun = v(LOOKS[s.look]["en"]) + " " + noun
    if s.bound:
        number = {"least": "at least ", "only": "only "}[s.bound] + (number if plural else "one")
    elif not plural and noun[0] in "aeiou":
        number = "an"
    be = ("are" if plural else "is") + (" not" if s.negative else "")
    words = [number, noun, be, v(ACTIONS[s.action]["en"]), cell(PLACES, s.place, "en", v),
             cell(EXTRAS, s.extra, "en", v)]
    return capital(" ".join(filter(None, words))) + "."


def ko_object(phrase, v):
    """사과_를: the object particle stays in translations and falls in native speech."""
    before, mark, after = phrase.partition("_")
    return before + (after[1:] if v.native else after) if mark else phrase


def ko_scene(s, v):
    noun, number = v(AGENTS[s.agent]["ko"]), NUMBERS["ko"][s.number - 1]
    look = ""
    if " " in s.look:
        colour, garment = s.look.split()
        look = f"{COLOURS[colour]['ko'][0]} {ko_object(GARMENTS[garment]['ko'][0], v)} "
    elif s.look:
        look = v(LOOKS[s.look]["ko"]) + " "
    particle = "만" if s.bound == "only" else "이"
    if v.native:
        subject = f"{look}{noun} {'최소 ' if s.bound == 'least' else ''}{number} 명{particle}"
    else:
        bound = "적어도 " if s.bound == "least" else ""
        subject = f"{look}{bound}{number} 명의 {noun if particle == '만' else josa(noun, '이', '가')}"
        subject += "만" if particle == "만" else ""
    place = cell(PLACES, s.place, "ko", v)
    verb = ko_object(v(ACTIONS[s.action]["ko"]), v) + "고 있"
    if s.negative:
        verb += v.either("지 않", "지 않", "진 않")
    words = [subject, cell(EXTRAS, s.extra, "ko", v), place and place + "에서", ko_end(verb, v)]
    return " ".join(filter(None, words))


def ja_scene(s, v):
    noun, number = v(AGENTS[s.agent]["ja"]), NUMBERS["ja"][s.number - 1]
    look = ""
    if " " in s.look:
        colour, garment = s.look.split()
        thing, worn = GARMENTS[garment]["ja"][0].split("_")
        look = COLOURS[colour]["ja"][0] + thing + v.either(worn, "の", worn)
    elif s.look:
        look = v(LOOKS[s.look]["ja"])
    subject = {"": f"{look}{number}人の{noun}が", "only": f"{look}{number}人の{noun}だけが",
               "least": f"{look}{noun}が少なくとも{number}人、"}[s.bound]
    if v.native and s.bound != "least":
        subject = f"{look}{noun}が{number}人{'だけ' if s.bound else ''}、"
    place, extra = cell(PLACES, s.place, "ja", v), cell(EXTRAS, s.extra, "ja", v)
    place = place and place + "で"
    ending = {(True, False): "います", (True, True): "いません", (False, False): "いる", (False, True): "いない"}
    ending = ending[v.polite, s.negative][1 if v.native else 0:] + ("ね" if v.native and v.tail == 2 else "")
    return f"{subject}{extra}{place}{v(ACTIONS[s.action]['ja'])}{ending}。"


def zh_scene(s, v):
    noun, number = v(AGENTS[s.agent]["zh"]), NUMBERS["zh"][s.number - 1] + "个"
    if " " in s.look:
        colour, garment = s.look.split()
        verb, thing = GARMENTS[garment]["zh"][0].split(",")
        noun = f"{verb}{COLOURS[colour]['zh'][0]}{v.either('色', '')}{thing}的{noun}"
    elif s.look:
        noun = v(LOOKS[s.look]["zh"]) + noun
    subject = {"": "", "least": v.either("至少有", "起码有"), "only": "只有"}[s.bound] + number + noun
    extra, place = cell(EXTRAS, s.extra, "zh", v), cell(PLACES, s.place, "zh", v)
    if extra and EXTRAS[s.extra]["kind"] == "T":
        subject, extra = f"{extra}，{subject}", ""
    verb = v(ACTIONS[s.action]["zh"])
    if s.negative:
        return subject + v.either("没有", "没") + extra + ("在" + place if place else "在") + verb + "。"
    return f"{subject}{extra}{v.either('正在', '在')}{place}{verb}{v.either('', '呢', '')}。"


def sw_scene(s, v):
    plural = s.number > 1
    words = [v(AGENTS[s.agent]["sw"]).split(",")[plural], NUMBERS["sw"][s.number - 1]]
    if s.bound:
        words.insert(0, v.either("angalau", "walau")) if s.bound == "least" else words.append("tu")
    if " " in s.look:
        colour, garment = s.look.split()
        forms = GARMENTS[garment]["sw"][0].split(",")
        tint = v(COLOURS[colour]["sw"]).split(",")[int(forms[2 + plural])]
        wearing = v.either("waliovaa", "wenye") if plural else v.either("aliyevaa", "mwenye")
        words += [wearing, forms[plural], tint]
    elif s.look:
        words.append(v(LOOKS[s.look]["sw"]).split(",")[plural])
    yes, no, thing = v(ACTIONS[s.action]["sw"]).split(",")
    words.append(("hawa" if plural else "ha") + no if s.negative else ("wana" if plural else "ana") + yes)
    words += [thing, cell(PLACES, s.place, "sw", v), cell(EXTRAS, s.extra, "sw", v)]
    return capital(" ".join(filter(None, words))) + "."


REALISE = {"sentiment": {"en": en_review, "ko": ko_review, "ja": ja_review, "zh": zh_review, "sw": sw_review},
           "nli": {"en": en_scene, "ko": ko_scene, "ja": ja_scene, "zh": zh_scene, "sw": sw_scene}}


def sample(task, rng, label, native):
    """The meanings of one row: a review, or premise and hypothesis."""
    return (sample_review(rng, label, native),) if task == "sentiment" else sample_pair(rng, label, native)


def speak(task, lang, meanings, rng=None):
    """The row's texts, native with an rng, else as a translation."""
    voice = Voice(rng is not None, rng, meanings[0].casual)
    return tuple(REALISE[task][lang](m, voice) for m in meanings)


# Building the files.
def build_rows(task, sizes, seed):
    """{(lang, split): rows of (label, text, [text_b], [translation, [translation_b]])}, test splits first."""
    files, banned = {}, set()
    for split in ("test", "dev", "train"):
        for lang in LANGS:
            count = sizes["train" if lang == "en" else "native"] if split == "train" else sizes[split]
            rng = random.Random(f"{seed} {task} {lang} {split}")
            others = LANGS[1:] if (lang, split) == ("en", "train") else ()
            seen, rows = [set() for _ in range(len(others) + 1)], []
            with tqdm(total=count, desc=f"{task} {lang} {split}", leave=False, delay=2) as bar:
                for label in itertools.cycle(LABELS[task]):
                    if len(rows) == count:
                        break
                    versions = fresh_versions(task, lang, others, label, rng, banned, seen)
                    rows.append((label, versions))
                    bar.update()
            rng.shuffle(rows)
            files[lang, split] = [(label, *versions[0]) for label, versions in rows]
            for i, other in enumerate(others):
                files[other, "translated"] = [(label, *v[0], *v[i + 1]) for label, v in rows]
            if split == "test":
                banned.update(text for _, *texts in files[lang, split] for text in texts)
    return files


def fresh_versions(task, lang, others, label, rng, banned, seen):
    """One row in its language and its translations, none of it seen before, no text of it banned."""
    while True:
        meanings = sample(task, rng, label, native=lang != "en")
        versions = [speak(task, lang, meanings, rng)] + [speak(task, other, meanings) for other in others]
        new = all(version not in old for version, old in zip(versions, seen))
        if new and not any(text in banned for version in versions for text in version):
            for version, old in zip(versions, seen):
                old.add(version)
            return versions


def check_no_leak(files, task):
    """Raise if a text of any test split stands in another split."""
    test = {text for lang in LANGS for _, *texts in files[lang, "test"] for text in texts}
    for (lang, split), rows in files.items():
        leaked = split != "test" and next((t for _, *texts in rows for t in texts if t in test), None)
        if leaked:
            raise RuntimeError(f"{task}/{lang}/{split}.tsv holds a test sentence: {leaked}")


def write_files(root, task, files):
    for (lang, split), rows in files.items():
        header = HEADERS[task]
        if split == "translated":
            header += tuple(name.replace("text", "translation") for name in header[1:])
        folder = root / task / lang
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{split}.tsv", "w", encoding="utf-8", newline="\n") as f:
            f.writelines("\t".join(row) + "\n" for row in itertools.chain([header], rows))


# The encoder: masked language modelling on train and translated rows, never on dev or test.
LAYERS, WIDTH, HEADS, INNER = 2, 128, 4, 256
VOCAB, MAX_LENGTH = 2600, 128
BATCH, RATE, MASKED = 24, 3e-3, 0.15                    # sequences, peak learning rate, share of tokens
PAIR_SHARE = 0.25                                       # of the sequences: English beside its translation
MONO_SHARE = {"en": 6, "ko": 4, "ja": 4, "zh": 4, "sw": 1}        # relative; sw is the low-resource language
PAIRS_SHARE = {"ko": 4, "ja": 4, "zh": 4, "sw": 1}
PAIR_WEIGHT, TEMPERATURE = 2.0, 0.05                    # of the contrastive loss


def train_tokenizer(texts):
    """A BPE tokenizer with XLM-R's special tokens and templates."""
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tok = Tokenizer(models.BPE(unk_token="<unk>"))
    tok.normalizer = normalizers.NFKC()
    # One piece a syllable in Chinese and Korean, a run of kana in Japanese: whole phrases, or every inflected
    # form of a word by itself, would be pieces too rare for an encoder of this size.
    scripts = Regex(r"\p{P}|\p{Han}|\p{Hangul}|\p{Hiragana}+|[\p{Katakana}ー]+")
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Split(scripts, "isolated")])
    tok.decoder = decoders.Metaspace()
    tok.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=specials, min_frequency=5, show_progress=False))
    tok.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tok, bos_token="<s>", cls_token="<s>", pad_token="<pad>", eos_token="</s>",
        sep_token="</s>", unk_token="<unk>", mask_token="<mask>", model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"])


def sample_corpus(worlds, count, rng):
    """Texts (a, b or None): rows of every language, and English rows beside their translation."""
    corpus = []
    for _ in range(count):
        task = "nli" if rng.random() < 0.6 else "sentiment"
        files, width = worlds[task], len(HEADERS[task]) - 1
        if rng.random() < PAIR_SHARE:
            lang = rng.choices(list(PAIRS_SHARE), PAIRS_SHARE.values())[0]
            row = rng.choice(files[lang, "translated"])
            pair = rng.choice(row[1:1 + width]), rng.choice(row[1 + width:])     # maybe premise, hypothesis
            corpus.append(pair if rng.random() < 0.5 else pair[::-1])
            continue
        lang = rng.choices(list(MONO_SHARE), MONO_SHARE.values())[0]
        if lang == "en" or rng.random() < 0.5:
            row = rng.choice(files[lang, "train"])[1:]
        else:
            row = rng.choice(files[lang, "translated"])[1 + width:]
        corpus.append((row[0], row[1] if width == 2 else None))
    return corpus


def length_batches(ids, generator):
    """Index lists of BATCH sequences of like length, in random order: little padding."""
    order = torch.randperm(len(ids), generator=generator).tolist()
    pool = BATCH * 50
    batches = []
    for i in range(0, len(order), pool):
        bucket = sorted(order[i:i + pool], key=lambda j: len(ids[j]))
        batches += [bucket[k:k + BATCH] for k in range(0, len(bucket), BATCH)]
    return [batches[k] for k in torch.randperm(len(batches), generator=generator).tolist()]


def mask_tokens(ids, tokenizer, generator):
    """BERT's masking: of the chosen tokens 80% become <mask>, 10% a random token, 10% stay."""
    chosen = (torch.rand(ids.shape, generator=generator) < MASKED) & (ids > 3)                   # (B, T)
    fate = torch.rand(ids.shape, generator=generator)
    random_ids = torch.randint(5, len(tokenizer), ids.shape, generator=generator)
    masked = torch.where(chosen & (fate < 0.8), tokenizer.mask_token_id, ids)
    return torch.where(chosen & (fate > 0.9), random_ids, masked), chosen


def sample_pairs(worlds, count, rng):
    """Sentences with their translations, ((english,), (translation,)) or pairs of them, beside their like.

    Sorting by the English puts 'the room was dirty' beside 'the room was clean': to tell them apart takes
    every word."""
    pairs = []
    for _ in range(count):
        task = rng.choice(list(worlds))
        lang = rng.choices(list(PAIRS_SHARE), PAIRS_SHARE.values())[0]
        row, width = rng.choice(worlds[task][lang, "translated"]), len(HEADERS[task]) - 1
        source, target = row[1:1 + width], row[1 + width:]
        if task == "sentiment" and rng.random() < 0.6:   # a single clause, which no row of the files is
            topic = rng.choice(list(TOPICS))
            clause = (Review(topic, (), (sample_clause(rng, topic, rng.random() < 0.5),), ""),)
            source, target = speak(task, "en", clause, rng), speak(task, lang, clause)
        elif task == "nli" and rng.random() < 0.6:
            i = rng.randrange(2)
            source, target = source[i:i + 1], target[i:i + 1]
        pairs.append((source, target))
    pairs.sort(key=lambda pair: (sum(map(len, pair[0])) // 30, pair))          # like lengths: little padding
    batches = [pairs[i:i + BATCH] for i in range(0, count, BATCH)]
    rng.shuffle(batches)
    return [pair for batch in batches for pair in batch]


def tokenize(texts, tokenizer):
    """Ids of (text,) or (text, text_b or None), cut to MAX_LENGTH."""
    texts = [t if len(t) == 2 and t[1] else t[0] for t in texts]
    return [e.ids[:MAX_LENGTH] for e in tokenizer.backend_tokenizer.encode_batch(texts)]


def pad(rows, device="cpu"):
    rows = [torch.tensor(row) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=1).to(device)       # (B, T)


def mlm_loss(model, tokens, tokenizer, generator):
    """Masked LM on ids that are still on the CPU, so that every device masks the same tokens."""
    inputs, chosen = mask_tokens(tokens, tokenizer, generator)
    tokens, inputs, chosen = (x.to(model.device) for x in (tokens, inputs, chosen))
    hidden = model.roberta(inputs, attention_mask=(tokens != 1).long()).last_hidden_state    # (B, T, WIDTH)
    return F.cross_entropy(model.lm_head(hidden[chosen]), tokens[chosen])                    # (M, V) and (M,)


def pair_loss(model, rows):
    """Contrastive: a sentence finds its translation in the batch by the cosine of mean-pooled embeddings."""
    tokens = pad(rows, model.device)                                                         # (2B, T)
    mask = tokens != 1
    hidden = model.roberta(tokens, attention_mask=mask.long()).last_hidden_state             # (2B, T, WIDTH)
    pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)                   # (2B, WIDTH)
    a, b = F.normalize(pooled, dim=1).chunk(2)
    scores = a @ b.T / TEMPERATURE                                                           # (B, B)
    target = torch.arange(len(a), device=scores.device)
    return (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2


def new_model(vocab_size):
    return XLMRobertaForMaskedLM(XLMRobertaConfig(
        vocab_size=vocab_size, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=INNER, max_position_embeddings=MAX_LENGTH + 2, type_vocab_size=1, pad_token_id=1,
        bos_token_id=0, eos_token_id=2, initializer_range=0.03, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0))


def pretrain(worlds, steps, seed, folder):
    """Train tokenizer and encoder, save both; returns the masked-LM loss, a mean over the last tenth."""
    rng = random.Random(f"{seed} corpus")
    corpus = sample_corpus(worlds, steps * BATCH, rng)
    pairs = sample_pairs(worlds, steps * BATCH, rng)
    readable = [rows[:2000] for files in worlds.values() for (_, split), rows in files.items()
                if split in ("train", "translated")]
    tokenizer = train_tokenizer([text for rows in readable for row in rows for text in row[1:]])
    ids = tokenize(corpus, tokenizer)
    left, right = (tokenize(side, tokenizer) for side in zip(*pairs))
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = new_model(len(tokenizer)).to("cuda" if torch.cuda.is_available() else "cpu").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, betas=(0.9, 0.98))
    warmup = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warmup, max(0.02, (steps - s) / max(1, steps - warmup))))
    losses, batches = [], length_batches(ids, generator)                # one batch a step
    bar = tqdm(range(steps), desc="pretraining", unit="step", mininterval=2)
    for step in bar:
        here = slice(step * BATCH, (step + 1) * BATCH)
        masked = mlm_loss(model, pad([ids[j] for j in batches[step]]), tokenizer, generator)
        loss = masked + PAIR_WEIGHT * pair_loss(model, left[here] + right[here])
        losses.append(masked.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            bar.set_postfix(masked_lm=f"{sum(losses[-20:]) / len(losses[-20:]):.2f}")
    encoder = XLMRobertaModel(model.config)                    # with the pooler that AutoModel looks for
    encoder.load_state_dict(model.roberta.state_dict(), strict=False)
    encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    last = losses[-max(1, len(losses) // 10):]
    return sum(last) / len(last)


def report(worlds):
    for task, files in worlds.items():
        for lang in LANGS:
            counts = {split: len(files[lang, split]) for split in ("train", "dev", "test", "translated")
                      if (lang, split) in files}
            print(f"{task:9} {lang}  " + "  ".join(f"{split} {n}" for split, n in counts.items()))
    rng = random.Random(0)
    for task in HEADERS:
        meanings = sample(task, rng, LABELS[task][0], False)
        print(f"\none meaning ({LABELS[task][0]}): translation, then a native version\n  en  "
              + " / ".join(speak(task, "en", meanings, rng)))
        for lang in LANGS[1:]:
            print(f"  {lang}  " + " / ".join(speak(task, lang, meanings)))
            print("      " + " / ".join(speak(task, lang, meanings, rng)))


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="data/toy", help="folder to write; replaced if this script made it")
    parser.add_argument("--seed", type=int, default=0, help="the same seed writes the same bytes of text")
    parser.add_argument("--rows", type=int, default=20000,
                        help="English train rows a task; native train a quarter, dev 1/20, test 1/10 but "
                             "no fewer than the smaller of this and 2000")
    parser.add_argument("--steps", type=int, default=1600, help=f"masked-LM updates of {BATCH} sequences")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    out, start = Path(args.out), time.time()
    building = out.with_name(out.name + ".building") if out.name else out
    for folder in (out, building):
        empty = folder.is_dir() and not any(folder.iterdir())
        if folder.exists() and not empty and not (folder / MARKER).exists():
            print(f"error: {folder} was not made by data/toy.py; choose another --out", file=sys.stderr)
            return 2
    if args.rows < 40 or args.steps < 1:
        print("error: --rows must be at least 40 and --steps at least 1", file=sys.stderr)
        return 2
    sizes = {"train": args.rows, "native": args.rows // 4, "dev": args.rows // 20,
             "test": max(args.rows // 10, min(args.rows, 2000))}    # fewer cannot show three points
    print(f"toy world into {out}: {len(HEADERS)} tasks x {len(LANGS)} languages, "
          f"{args.rows} English rows a task, encoder of {LAYERS} layers x {WIDTH}, {args.steps} updates; "
          f"about {10 + args.rows // 2000 + args.steps * 0.055:.0f} s on two cores, or twice that",
          flush=True)
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    settings = {"seed": args.seed, "rows": args.rows, "steps": args.steps}
    (building / MARKER).write_text(json.dumps(settings) + "\n")
    worlds = {task: build_rows(task, sizes, args.seed) for task in HEADERS}
    for task, files in worlds.items():
        check_no_leak(files, task)
        write_files(building, task, files)
    texts_done = time.time()
    loss = pretrain(worlds, args.steps, args.seed, building / "encoder")
    if out.exists():
        shutil.rmtree(out)
    os.rename(building, out)
    report(worlds)
    print(f"\nmasked-LM loss {loss:.2f}; text {texts_done - start:.0f} s, "
          f"encoder {time.time() - texts_done:.0f} s, in all {time.time() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
