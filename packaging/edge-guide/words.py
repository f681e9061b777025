"""Word lists, made-up words, function names and argument values."""

import random
from dataclasses import dataclass
from typing import Any

from grammar import held_out

VERBS = (
    "get find search lookup fetch query check list show create make add send post book order"
    " reserve schedule cancel delete remove update set change start stop open close play convert"
    " translate calculate compute count measure read write save load run call ask track locate"
    " compare rate rank sort filter export import print scan sync notify remind assign share"
).split()
NOUNS = (
    "weather forecast temperature stock price rate currency flight train bus hotel room table"
    " restaurant meal recipe event meeting calendar reminder alarm timer note task ticket issue"
    " order invoice payment account balance user customer contact email message file folder"
    " document report page article news movie song album playlist book author photo video map"
    " route distance address city country timezone clock date holiday light lamp door lock"
    " heater fan sensor camera printer device server host disk backup job build branch commit"
    " package product item stock warehouse shipment parcel vehicle car taxi parking patient"
    " doctor appointment medicine student course grade team player match score game level"
).split()
ARGS = (
    "name title text query keyword city country place location address id code number count"
    " amount price size width height weight speed level color language category type date day"
    " month year time hour minutes duration start end from to source target path file url email"
    " phone user owner author topic subject message body status priority quantity limit page"
    " unit currency symbol room seat device channel volume temperature percent age score"
).split()
CITIES = (
    "Paris London Berlin Madrid Rome Vienna Lisbon Oslo Prague Warsaw Athens Dublin Tokyo Kyoto"
    " Seoul Beijing Shanghai Delhi Mumbai Cairo Lagos Nairobi Sydney Melbourne Toronto Boston"
    " Chicago Denver Seattle Austin Dallas Miami Lima Bogota Santiago Hamburg Munich Cologne"
    " Zurich Geneva Milan Naples Porto Lyon Nice Bristol Leeds Glasgow Helsinki Stockholm"
    " Copenhagen Budapest Bucharest Sofia Istanbul Ankara Dubai Doha Tehran Karachi Dhaka"
    " Bangkok Hanoi Manila Jakarta Singapore Auckland Havana Quito Caracas Montreal Vancouver"
).split()
CITIES += ["New York", "San Francisco", "Los Angeles", "Hong Kong", "Cape Town", "Buenos Aires"]
CITIES_ZH = (
    "北京 上海 广州 深圳 杭州 南京 成都 重庆 武汉 西安 天津 苏州 长沙 青岛 大连 厦门 昆明 哈尔滨 郑州 济南"
    " 合肥 福州 南昌 贵阳 兰州 拉萨 海口 三亚 桂林 洛阳 东京 巴黎 伦敦 柏林 纽约 悉尼 罗马 首尔 曼谷 新加坡"
).split()
PEOPLE = (
    "Anna Ben Carla David Emma Felix Grace Henry Ivy Jack Karen Leo Mia Noah Olga Paul Quinn"
    " Rosa Sam Tina Uma Victor Wendy Xavier Yusuf Zoe Alice Bob Chen Dana Erik Fatima George Hana"
    " Igor Julia Kim Lena Marco Nina Omar Petra Ravi Sara Tom Lucy Maria Peter John Linda"
).split()
PEOPLE_ZH = (
    "小明 小红 张伟 王芳 李娜 刘洋 陈静 杨帆 赵磊 孙丽 周涛 吴敏 郑强 老王 小李 阿强".split()
)
WORDS = (
    "apple river stone cloud garden silver window bridge coffee orange planet forest winter"
    " summer yellow purple copper marble tiger falcon rabbit dragon engine rocket candle mirror"
    " ocean desert island valley castle temple market school library museum station airport"
    " harbor kitchen blanket hammer bottle basket jacket helmet guitar violin piano trumpet soccer"
    " tennis chess poker milk bread butter cheese honey sugar pepper salad pasta pizza salmon"
    " battery cable screen keyboard laptop tablet router modem filter sensor budget invoice"
    " project launch review summary draft final weekly monthly annual urgent private public"
).split()
WORDS_ZH = (
    "苹果 河流 石头 白云 花园 窗户 大桥 咖啡 橙子 森林 冬天 夏天 老虎 兔子 飞机 火车 镜子 海洋 沙漠 城堡 市场"
    " 学校 图书馆 博物馆 车站 机场 厨房 吉他 钢琴 足球 网球 牛奶 面包 蜂蜜 沙拉 电池 电脑 手机 键盘 项目 报告"
    " 周报 合同 发票 会议 客厅 卧室 红色 蓝色 音乐 新闻 电影 小说 词典 地图 雨伞 手表"
).split()
DATES = "today tomorrow tonight Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
ONSET = "b c d f g h j k l m n p r s t v w z br ch cl dr fl gr kr pl qu sh sk st th tr".split()
VOWEL = "a e i o u a e i o u ai ea io oo ou y".split()
CODA = ["", "", "", "n", "r", "s", "l", "m", "t", "k", "x", "nd", "rt", "sh"]


def syllables(rng: random.Random, low: int = 1, high: int = 3) -> str:
    """A word that exists nowhere."""
    n = rng.randint(low, high)
    return "".join(rng.choice(ONSET) + rng.choice(VOWEL) + rng.choice(CODA) for _ in range(n))


def join(rng: random.Random, words: list[str]) -> str:
    """Words as one identifier: snake_case, camelCase or another habit."""
    style = rng.random()
    if style < 0.65:
        return "_".join(words)
    if style < 0.9:
        return words[0] + "".join(w.capitalize() for w in words[1:])
    return rng.choice(["-", ".", ""]).join(words)


def tool_words(rng: random.Random) -> list[str]:
    """The words of a function's name: real ones, made-up ones, or both."""
    kind = rng.random()
    if kind < 0.5:
        words = [rng.choice(VERBS), rng.choice(NOUNS)]
        if rng.random() < 0.2:
            words.append(rng.choice([*NOUNS, "by_id", "info", "status", "details", "v2"]))
    elif kind < 0.75:
        words = [syllables(rng, 1, 3) for _ in range(rng.randint(1, 2))]
    elif kind < 0.9:
        words = [rng.choice(VERBS), syllables(rng, 1, 3)]
    else:
        words = [rng.choice(NOUNS + WORDS), rng.choice(NOUNS + WORDS + VERBS)]
    return words


def tool_name(rng: random.Random, *, unseen: bool) -> str:
    """A function name; those kept for the evaluation and those for training never meet."""
    while True:
        name = join(rng, tool_words(rng))
        if held_out(name, 5) is unseen:
            return name


@dataclass
class Argument:
    """One parameter and the value that the user will mention."""

    name: str
    kind: str  # a JSON schema type
    value: Any
    said: str  # the value as the user writes it


def text_value(  # noqa: PLR0911 - one return for each kind of value
    rng: random.Random, *, chinese: bool
) -> str:
    """A word or two to be copied."""
    kind = rng.random()
    if chinese and kind < 0.6:
        return rng.choice(rng.choice([CITIES_ZH, PEOPLE_ZH, WORDS_ZH, CITIES_ZH]))
    if kind < 0.3:
        return rng.choice(rng.choice([CITIES, CITIES, PEOPLE, WORDS]))
    if kind < 0.6:
        word = syllables(rng, 1, 3)
        return word.capitalize() if rng.random() < 0.6 else word
    if kind < 0.75:
        return " ".join(
            rng.choice([rng.choice(WORDS), syllables(rng)]) for _ in range(rng.randint(2, 3))
        )
    if kind < 0.85:
        return (
            f"{syllables(rng, 1, 2).upper()[:4]}{rng.choice(['-', '', '_'])}{rng.randint(1, 9999)}"
        )
    if kind < 0.93:
        return f"20{rng.randint(10, 39)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
    return f"{syllables(rng, 1, 2)}@{syllables(rng, 1, 2)}.{rng.choice(['com', 'org', 'net', 'de', 'cn'])}"


def argument(rng: random.Random, name: str, *, chinese: bool) -> Argument:
    """A parameter with a value of a random type."""
    kind = rng.random()
    if kind < 0.2:
        number = rng.choice([rng.randint(0, 12), rng.randint(10, 99), rng.randint(100, 99999)])
        return Argument(name, rng.choice(["integer", "number"]), number, str(number))
    if kind < 0.25:
        number = round(rng.uniform(0, 200), rng.randint(1, 2))
        return Argument(name, "number", number, str(number))
    text = text_value(rng, chinese=chinese)
    return Argument(name, "string", text, f'"{text}"' if rng.random() < 0.12 else text)
