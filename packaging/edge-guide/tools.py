"""Conversations about tools: made-up functions, wishes that need them, and their results."""

import json
import random
import re
from dataclasses import dataclass
from typing import Any

import words
from grammar import sample
from render import Example
from words import Argument

Json = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """Functions of one purpose and how people ask for it; `{0}`, `{1}` are the arguments."""

    name: str
    description: str
    arguments: tuple[tuple[str, str], ...]  # names to choose from, kind of value
    en: tuple[str, ...]
    zh: tuple[str, ...]


F = Family
FAMILIES = (
    F("{get|fetch|check|query|current|lookup} {weather|forecast|temperature|climate|rain|humidity}",
      "{Get|Returns|Look up} the {current weather|weather|forecast|temperature} {for|in|of} a {city|place}.",
      (("city|location|place|town|where|region", "city"),),
      ("{What is|What's|whats|how is|how's|tell me|show me|check|I need|get me} the {weather|forecast|temperature} {in|for|at} {0}[ today| now| right now| please]",
       "{Is it|will it be} {raining|cold|warm|sunny|hot|windy} in {0}[ today| tonight]", "weather {0}", "{0} weather"),
      ("{0}{今天|现在|}{的|}天气{怎么样|如何|怎样|好吗|}", "{查一下|帮我查|查询|请查|看看|告诉我}{0}的{天气|气温|天气预报|温度}", "{0}{今天|}{会下雨吗|冷不冷|热吗|多少度}")),
    F("{get|fetch|convert|lookup} {time|clock|local time|timezone}", "{Current|Local} time {in|of} a {city|place}.",
      (("city|place|location|zone|timezone", "city"),),
      ("{What time is it|what's the time|tell me the time|current time|what is the local time} in {0}[ now| please]",),
      ("{0}{现在|}{几点了|是几点|什么时间}", "{告诉我|查一下}{0}的{时间|当地时间}")),
    F("{book|reserve|search|find|get} {flight|train|bus|ticket|trip|ride|route|connection}",
      "{Book|Find|Search} a {flight|train|trip|connection} between two {cities|places}.",
      (("from|origin|source|start|departure|from_city", "city"), ("to|destination|target|end|arrival|to_city", "city")),
      ("{Book|Find|Search|get|reserve|I need|I want|show me} a {flight|train|bus|trip|ticket|ride|connection} from {0} to {1}[ please]",
       "{How do I get|I want to go|I have to travel|take me} from {0} to {1}", "{train|flight|bus} {0} to {1}"),
      ("{帮我|请|我要|我想|}{订|查|找|买}{一张|}从{0}到{1}的{机票|火车票|航班|火车|车票}", "{我想|我要|}从{0}{去|到}{1}")),
    F("{get|fetch|check|lookup|query} {stock|share|quote|price}[ price| info]", "{Price|Quote} of a {stock|share|symbol}.",
      (("symbol|ticker|stock|name|company", "name"),),
      ("{What is|what's|tell me|show|get|check} the {price|stock price|quote|value} of {0}[ stock| shares| please]", "how {is|are} {0} {stock|shares} doing", "{0} {stock|share} price"),
      ("{0}的{股价|股票价格|价格}{是多少|}", "{查一下|帮我查|查询}{0}的{股价|股票|行情}")),
    F("{convert|change|exchange} {currency|money|units|amount|value}", "Converts an amount from one {currency|unit} to another.",
      (("amount|value|quantity|number", "number"), ("from|source|from_currency|from_unit|base", "unit"), ("to|target|to_currency|to_unit", "unit")),
      ("{Convert|change|exchange|turn} {0} {1} {to|into|in} {2}[ please]", "{how much|how many|what} is {0} {1} in {2}", "{0} {1} to {2}"),
      ("{把|将|请把}{0}{1}{换成|转换成|兑换成|转成}{2}", "{0}{1}{等于多少|是多少|合多少}{2}")),
    F("{translate|convert} {text|sentence|word|phrase|message}", "Translates a {text|word} into another language.",
      (("text|word|phrase|sentence|source", "title"), ("to|language|target|target_language|lang", "language")),
      ("{Translate|put|say} {0} {into|to|in} {1}[ please]", "{what is|how do you say} {0} in {1}"),
      ("{把|请把|将}{0}{翻译成|译成}{1}", "{0}用{1}怎么说")),
    F("{send|write|compose|post|deliver} {email|mail|message|sms|note|letter}", "Sends a {message|mail|note} to {a person|someone}.",
      (("to|recipient|address|user|person|contact|receiver", "person"), ("text|message|body|content|subject", "title")),
      ("{Send|write|mail|email|text} {a message to |an email to |a note to |}{0}[ that says| saying|:| with the text] {1}", "{Tell|message|inform} {0}[ that|:] {1}", "send {1} to {0}"),
      ("{给|向}{0}{发|发送|写}{一条消息|邮件|短信|消息|一封邮件}[说|：|,内容是] {1}", "{告诉|通知}{0} {1}")),
    F("{create|add|make|schedule|new|set} {event|meeting|appointment|reminder|calendar|alarm|task}",
      "{Creates|Adds} {an event|a meeting|a reminder} {in the calendar|on a day}.",
      (("title|name|subject|text|what|event", "title"), ("date|day|when|time|at", "date")),
      ("{Create|add|make|schedule|set|put} {a meeting|an event|a reminder|an appointment|a task}[ called| named| titled|:| for] {0} {on|for|at} {1}[ please]",
       "{Remind me|remind us} {about|of} {0} {on|at} {1}", "{I have|we have} {0} on {1}, {add it|put it in|note it}"),
      ("{在|}{1}{提醒我|安排|添加|创建}{0}", "{创建|添加|安排}{一个|}{会议|日程|提醒}{0}[,]{时间|日期}{是|为|：|}{1}")),
    F("{get|find|fetch|lookup|show|search} {user|customer|contact|employee|person|member|account|patient|student}[ info| details| by id| profile]",
      "{Returns|Finds|Looks up} {the data of |}a {user|customer|person} by {id|name|number}.",
      (("id|user_id|number|customer_id|code", "int"),),
      ("{Show|get|find|look up|fetch|open|give me} {user|customer|contact|member|account|person|employee}[ number| id| with id| with the id] {0}[ please]", "who is {user|customer|member|number|employee} {0}"),
      ("{查找|查询|显示|打开}{用户|客户|编号|成员|账号}{0}[的信息|的资料]", "{编号|用户|客户}{0}是谁")),
    F("{get|check|track|lookup|find|show|cancel} {order|parcel|shipment|package|invoice|ticket|delivery|booking}[ status| info]",
      "{Status of|Tracks|Looks up} {an order|a parcel|a ticket|an invoice}.",
      (("order_id|id|number|code|tracking_number|reference|ticket", "code"),),
      ("{Where is|track|check|show|find|look up|cancel|what about} [my |the ]{order|parcel|package|shipment|ticket|invoice|booking} {0}[ please]", "{status of|what is the status of|what's up with} {order|ticket|parcel|invoice|shipment} {0}"),
      ("{查询|跟踪|查一下|取消}{订单|包裹|快递|发票|工单}{0}[的状态]", "{订单|包裹|快递}{0}{到哪了|在哪里|的状态是什么}")),
    F("{search|find|query|lookup|web} {web|internet|news|documents|articles|files|books|wiki|database|products|images|movies|songs|recipes}",
      "{Search|Searches|Finds} {the web|documents|news|products|books} {for|by} a {query|keyword|word}.",
      (("query|q|keyword|text|search|term|topic|title", "title"),),
      ("{Search|look|google|find} [the web |the internet |the news |online |documents ]for {0}[ please]", "{Find|search|show me|get} {news|articles|books|documents|files|information|products|movies|recipes|pictures} {about|on|for|with} {0}", "look up {0}"),
      ("{搜索|查找|搜一下|找一下|检索}{0}", "{帮我|请}{搜索|找|查}{关于|}{0}{的新闻|的资料|的文章|的信息|}")),
    F("{turn|switch|set|toggle|control} {light|lamp|fan|heater|device|tv|socket|pump}[ state| on| off]",
      "{Switches|Turns|Sets} a {lamp|device|fan} on or off.",
      (("room|device|name|lamp|location|place|id", "word"), ("state|value|status|action|mode", "onoff")),
      ("{Turn|switch} {1} the {light|lamp|fan|heater|device|tv} {in|of|at|called} [the ]{0}[ please]", "{Turn|switch} the {0} [light |lamp |fan ]{1}"),
      ("{把|请把}{0}的{灯|风扇|暖气|电视}{1}", "{1}{0}的{灯|风扇|设备}")),
    F("{set|change|adjust|update} {temperature|thermostat|volume|brightness|level|speed|limit|timer}",
      "Sets the {temperature|volume|level|speed|brightness} {of|in} a {room|device}.",
      (("room|device|name|zone|where", "word"), ("value|level|temperature|degrees|target|amount", "int")),
      ("{Set|change|adjust|put} the {temperature|volume|brightness|level|speed} {in|of|for} [the ]{0} to {1}[ percent| degrees]", "{Set|make} {0} {to|at} {1}"),
      ("{把|将|请把}{0}的{温度|音量|亮度|速度}{调到|设为|设置成|改成}{1}{度|}",)),
    F("{calculate|compute|add|multiply|sum|subtract|math|divide}[ numbers| values| sum]", "{Adds|Multiplies|Computes with} two numbers.",
      (("a|x|first|left|n1", "number"), ("b|y|second|right|n2", "number")),
      ("{Add|multiply|sum|subtract|divide|compute|calculate} {0} {and|by|with|plus|times|minus} {1}", "what is {0} {plus|times|minus|and|divided by|*|+|-} {1}"),
      ("{计算|算一下|}{0}{加|乘|减|除以|和}{1}{等于多少|是多少|}",)),
    F("{play|start|queue|stream|find} {music|song|track|video|album|playlist|movie|podcast}", "Plays a {song|video|album}.",
      (("title|song|name|query|track|what", "title"),),
      ("{Play|put on|start|queue|I want to hear|I'd like to hear|stream} [the song |the album |the movie |some ]{0}[ please| now]",),
      ("{播放|放|我想听|来一首|我要听}{0}",)),
    F("{read|open|load|show|delete|remove|download|print|get} {file|document|report|page|table|config|log}", "{Reads|Opens|Deletes|Loads} a {file|document}.",
      (("path|file|filename|name|document", "file"),),
      ("{Read|open|load|show|delete|remove|download|print|get} [me ][the ][file |document |report ]{0}[ please]", "what is in {0}"),
      ("{读取|打开|显示|删除|下载|打印}{文件|文档|}{0}",)),
    F("{run|start|stop|restart|reboot|ping|check|deploy} {server|host|job|service|build|pipeline|container|backup|machine}",
      "{Restarts|Starts|Stops|Checks} a {server|job|service|host}.",
      (("name|host|server|service|job|id|target", "name"),),
      ("{Run|start|stop|restart|reboot|ping|check|deploy} [the ]{server|host|job|service|build|container|machine} {0}[ now| please]", "{restart|ping|deploy|reboot|start} {0}"),
      ("{重启|启动|停止|检查|运行|部署}{服务器|主机|任务|服务|容器|}{0}",)),
    F("{find|search|book|reserve|get|list} {restaurant|hotel|room|table|cafe|shop|doctor|parking|place}[ nearby]",
      "{Finds|Books|Lists} {a hotel|a restaurant|shops|places} in a {city|place}.",
      (("city|location|place|area|where", "city"), ("guests|people|persons|count|nights|limit|number|stars", "int")),
      ("{Find|book|reserve|get|search|I need} [me ]a {hotel|restaurant|room|table|place|cafe} in {0} for {1} [people|guests|persons|nights|days]", "{hotel|table|room} in {0} for {1}"),
      ("{订|预订|找|帮我订|搜索}{一家|一个|}{0}的{酒店|餐厅|饭店|房间}[,]{1}{人|个人|晚|位}",)),
)  # fmt: skip

UNITS = "USD EUR GBP JPY CNY CHF INR dollars euros pounds yen miles kilometers meters feet inches grams kilograms liters gallons celsius fahrenheit".split()
UNITS_ZH = "美元 欧元 人民币 日元 英镑 公里 英里 米 千克 公斤 升 克 斤 里".split()
LANGUAGES = "German French Spanish Italian English Chinese Japanese Korean Dutch Polish Turkish Russian Greek Arabic Hindi Swedish".split()
LANGUAGES_ZH = "英语 德语 法语 日语 中文 西班牙语 韩语 俄语 意大利语 阿拉伯语".split()


def _value(  # noqa: C901, PLR0911, PLR0912 - one return for each kind of value
    rng: random.Random, kind: str, *, zh: bool
) -> tuple[str, Any]:
    """A value of one kind: its schema type and itself."""
    made_up = rng.random() < 0.35
    if kind == "int":
        return "integer", rng.choice(
            [rng.randint(1, 12), rng.randint(1, 99), rng.randint(100, 9999)]
        )
    if kind == "number":
        whole = rng.randint(1, 1000)
        return rng.choice(
            [("number", whole), ("integer", whole), ("number", round(rng.uniform(0, 99), 1))]
        )
    if kind == "code":
        return rng.choice(
            [
                ("string", f"{words.syllables(rng, 1, 1).upper()[:3]}-{rng.randint(10, 99999)}"),
                ("string", str(rng.randint(1000, 999999))),
                ("integer", rng.randint(1000, 999999)),
                ("string", f"{rng.choice('ABCDEFGHXYZ')}{rng.randint(1, 9999)}"),
            ]
        )
    if kind == "file":
        stem = rng.choice([words.syllables(rng), rng.choice(words.WORDS)])
        folder = rng.choice(
            ["", "", "", "/tmp/", "docs/", "/home/" + words.syllables(rng, 1, 2) + "/"]  # noqa: S108 - only words
        )
        return (
            "string",
            f"{folder}{stem}.{rng.choice(['txt', 'pdf', 'csv', 'json', 'md', 'log', 'py'])}",
        )
    if kind == "onoff":
        return "string", (rng.choice(["打开", "关闭"]) if zh else rng.choice(["on", "off"]))
    if kind == "unit":
        return "string", rng.choice(UNITS_ZH if zh and not made_up else UNITS)
    if kind == "language":
        return "string", rng.choice(LANGUAGES_ZH if zh and not made_up else LANGUAGES)
    if kind == "date":
        if made_up:
            return (
                "string",
                f"20{rng.randint(20, 35)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}",
            )
        return "string", rng.choice(
            ["今天", "明天", "周一", "周二", "周三", "周五", "周末", "下午三点"]
            if zh
            else words.DATES
        )
    if made_up and kind == "title":
        return "string", words.text_value(rng, chinese=zh)
    if made_up:  # one word: two values side by side must not run into each other
        return "string", rng.choice([str.capitalize, str])(words.syllables(rng))
    if kind == "city":
        return "string", rng.choice(words.CITIES_ZH if zh else words.CITIES)
    if kind == "person":
        return "string", rng.choice(words.PEOPLE_ZH if zh else words.PEOPLE)
    if kind == "word":
        return "string", rng.choice(words.WORDS_ZH if zh else words.WORDS)
    if kind == "name":
        return "string", rng.choice(
            [
                words.syllables(rng).capitalize(),
                words.syllables(rng, 1, 2).upper()[:4],
                words.syllables(rng),
            ]
        )
    if zh:
        return "string", "".join(rng.choice(words.WORDS_ZH) for _ in range(rng.randint(1, 2)))
    return "string", " ".join(rng.choice(words.WORDS) for _ in range(rng.randint(1, 3)))


def _schema(  # noqa: C901 - a list of independent habits of clients
    rng: random.Random, name: str, description: str, arguments: list[Argument]
) -> Json:
    """A function as OpenAI's clients send it, with the habits of different clients."""
    detailed = rng.random() < 0.3
    properties: Json = {}
    for a in arguments:
        properties[a.name] = {"type": a.kind}
        if detailed:
            properties[a.name]["description"] = rng.choice(["The ", "", "A "]) + a.name.replace(
                "_", " "
            )
    required = [a.name for a in arguments]
    if rng.random() < 0.12:  # an optional parameter that nobody mentions
        extra = rng.choice(["unit", "format", "limit", "verbose", "locale", words.syllables(rng)])
        if extra not in properties:
            properties[extra] = {"type": rng.choice(["string", "boolean", "integer"])}
            if extra == "unit":
                properties[extra]["enum"] = ["celsius", "fahrenheit"]
    parameters: Json = {"type": "object", "properties": properties}
    if required and rng.random() < 0.85:
        parameters["required"] = required
    if rng.random() < 0.08:
        parameters["additionalProperties"] = False
    function: Json = {"name": name}
    if description:
        function["description"] = description
    function["parameters"] = parameters
    if rng.random() < 0.04:
        function["strict"] = True
    if rng.random() < 0.1:  # serializers that sort keys
        return json.loads(json.dumps({"type": "function", "function": function}, sort_keys=True))
    return {"type": "function", "function": function}


def call_text(name: str, arguments: Json) -> str:
    """What the model must say to call a function."""
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"


EXPLICIT = (
    "{Call|Use|Run|Invoke|Try|Execute|Please call|Please use|I want you to call|can you run|could you use} {t}{ with|, with| for|:| using| and set|} {pairs}[ please]",
    "{t} {with|for} {pairs}",
    "{t}: {pairs}",
    "{pairs}: {please |}{call|use|run} {t}",
    "I need {t} {for|with} {pairs}",
)
EXPLICIT_NONE = (
    "{Call|Use|Run|Invoke|Please call|Please run|execute|can you run} {t}[ now| please| for me]",
    "{t}[ please]",
    "{请|}{调用|使用|运行|执行}{t}",
)
EXPLICIT_ZH = (
    "{请|帮我|}{调用|使用|运行|用|执行}{t}[,|，] {pairs}",
    "{t}[,|，|：] {pairs}",
    "{用|以} {pairs} {调用|运行}{t}",
)
PAIRS = (
    "{a} {v}",
    "{a} is {v}",
    "{a}={v}",
    "{a}: {v}",
    "{a} = {v}",
    "{a} set to {v}",
    "{v} as {a}",
    "the {a} {v}",
)
PAIRS_ZH = ("{a}为{v}", "{a}是{v}", "{a}={v}", "{a}：{v}", "{a} {v}", "{a}设为{v}")


def _fill(pattern: str, slots: dict[str, str], rng: random.Random) -> str:
    """Sample a pattern that has `{slot}` marks beside its choices."""
    for slot in slots:
        pattern = pattern.replace("{" + slot + "}", f"\x00{slot}\x01")
    text = sample(pattern, rng)
    for slot, value in slots.items():
        text = text.replace(f"\x00{slot}\x01", value)
    return text


def _explicit(
    rng: random.Random, *, unseen: bool, zh: bool
) -> tuple[str, str, str, list[Argument]]:
    """Name, description, wish and arguments where the wish names the function itself."""
    name = words.tool_name(rng, unseen=unseen)
    n = rng.choice([0, 1, 1, 1, 2, 2, 3])
    names: list[str] = []
    while len(names) < n:
        arg = rng.choice(
            [
                rng.choice(words.ARGS),
                words.syllables(rng, 1, 2),
                f"{rng.choice(words.ARGS)}_{rng.choice(words.ARGS)}",
            ]
        )
        if arg not in names:
            names.append(arg)
    arguments = [words.argument(rng, a, chinese=zh) for a in names]
    pair = rng.choice(PAIRS_ZH if zh else PAIRS)
    said = [
        _fill(
            pair,
            {"a": a.name.replace("_", " ") if rng.random() < 0.1 else a.name, "v": a.said},
            rng,
        )
        for a in arguments
    ]
    glue = rng.choice(["，", ",", "、"] if zh else [", ", " and ", ", ", " "])
    pattern = rng.choice(EXPLICIT_NONE if not n else EXPLICIT_ZH if zh else EXPLICIT)
    wish = _fill(pattern, {"t": name, "pairs": glue.join(said)}, rng)
    description = rng.choice(
        [
            "",
            "",
            _nonsense(rng),
            f"{rng.choice(words.VERBS)} {rng.choice(words.NOUNS)}".capitalize(),
        ]
    )
    return name, description, wish, arguments


def _nonsense(rng: random.Random) -> str:
    """A description made of real and made-up words."""
    return (
        " ".join(
            rng.choice(
                [
                    rng.choice(words.VERBS),
                    rng.choice(words.NOUNS),
                    words.syllables(rng),
                    "the",
                    "a",
                    "of",
                ]
            )
            for _ in range(rng.randint(2, 7))
        ).capitalize()
        + "."
    )


def _by_words(
    rng: random.Random, *, unseen: bool, zh: bool
) -> tuple[str, str, str, list[Argument]]:
    """A wish that shares the words of the function's name or description, but is no name itself."""
    while True:
        a, b = (
            rng.choice(words.VERBS),
            rng.choice([rng.choice(words.NOUNS), words.syllables(rng, 1, 3)]),
        )
        name = words.join(rng, [a, b])
        if words.held_out(name, 5) is unseen:
            break
    arg = rng.choice([rng.choice(words.ARGS), words.syllables(rng, 1, 2)])
    value = words.argument(rng, arg, chinese=zh)
    patterns = (
        "{v0} the {v1} {of|for|in|with|at} {v}[ please]", "{please |can you |could you |I want to |I'd like to |}{v0} {a|the|my|} {v1} {v}",
        "what is the {v1} {of|for|in} {v}", "I need {a|the} {v1} {for|of|called} {v}", "{v1} {for|of} {v}[ please]",
    )  # fmt: skip
    zh_patterns = (
        "{v0} {v1} {v}",
        "帮我 {v0} {v1}，{v}",
        "{请|}{查询|获取} {v1} {v}",
        "{v}的 {v1}",
    )
    wish = _fill(
        rng.choice(zh_patterns if zh else patterns), {"v0": a, "v1": b, "v": value.said}, rng
    )
    description = rng.choice(
        ["", f"{a.capitalize()} a {b}.", f"{a.capitalize()}s the {b} of a {arg.replace('_', ' ')}."]
    )
    return name, description, wish, [value]


def _family(rng: random.Random, *, unseen: bool, zh: bool) -> tuple[str, str, str, list[Argument]]:
    """A realistic function and a natural wish."""
    family = rng.choice(FAMILIES)
    while True:
        parts = sample(family.name, rng).split()
        style = rng.random()
        if style < 0.25:  # noise that makes the name new
            parts.insert(
                rng.randint(0, len(parts)),
                rng.choice([words.syllables(rng, 1, 2), rng.choice(words.NOUNS)]),
            )
        name = words.join(rng, parts)
        if words.held_out(name, 5) is unseen:
            break
    arguments = []
    for names, kind in family.arguments:
        arg_name = (
            rng.choice(names.split("|")) if rng.random() < 0.92 else words.syllables(rng, 1, 2)
        )
        schema, value = _value(rng, kind, zh=zh)
        arguments.append(Argument(arg_name, schema, value, str(value)))
    quoted = rng.random() < 0.08
    said = {
        str(i): f'"{a.said}"' if quoted and a.kind == "string" else a.said
        for i, a in enumerate(arguments)
    }
    wish = _fill(rng.choice(family.zh if zh else family.en), said, rng)
    return name, sample(family.description, rng) if rng.random() < 0.8 else "", wish, arguments


def finish_wish(rng: random.Random, wish: str, names: set[str], *, zh: bool) -> str:
    """Capital letter, full stop, question mark or politeness, as people do or do not write them."""
    if zh:
        return (
            rng.choice(["", "", "", "请", "你好，"]) + wish + rng.choice(["", "", "。", "？", "?"])
        )
    if rng.random() < 0.5 and wish.split(maxsplit=1)[0].rstrip(":") not in names:
        wish = wish[0].upper() + wish[1:]
    if rng.random() < 0.15:
        wish = rng.choice(["Please ", "Hi, ", "Hey, ", "ok, ", "Can you help? ", "Now "]) + wish
    return wish + rng.choice(["", "", ".", "?", "!", "."])


def _topic_words(name: str, description: str) -> set[str]:
    """What a function is about: a second one about the same thing would make a wish ambiguous."""
    pieces = re.findall(r"[A-Z]?[a-z]+", name + " " + description)
    found = {p.lower() for p in pieces} - {"the", "for", "two", "from", "another", *words.VERBS}
    for number, family in enumerate(FAMILIES):
        if found & set(re.findall(r"[a-z]+", family.name)):
            found.add(str(number))
    return found


def call_example(rng: random.Random, *, unseen: bool = False) -> tuple[Example, str, Json]:
    """A wish with one to four functions at hand; also the right name and arguments."""
    zh = rng.random() < 0.3
    makers = [_family, _family, _explicit, _by_words]
    name, description, wish, arguments = rng.choice(makers)(rng, unseen=unseen, zh=zh)
    tools = [_schema(rng, name, description, arguments)]
    taken = {name}
    topic = _topic_words(name, description)
    for _ in range(rng.choice([0, 0, 0, 1, 1, 2, 3])):
        other = rng.choice(makers)(rng, unseen=unseen, zh=zh)
        if other[0] not in taken and not topic & _topic_words(other[0], other[1]):
            taken.add(other[0])
            tools.append(_schema(rng, other[0], other[1], other[3]))
    rng.shuffle(tools)
    values = {a.name: a.value for a in arguments}
    order = next(t for t in tools if t["function"]["name"] == name)["function"]["parameters"][
        "properties"
    ]
    values = {k: values[k] for k in order if k in values}
    example = Example(
        "tool",
        [
            {
                "role": "user",
                "content": finish_wish(rng, wish, {name, *(a.name for a in arguments)}, zh=zh),
            }
        ],
        call_text(name, values),
        tools,
    )
    return example, name, values


def result_example(rng: random.Random) -> Example:
    """The turn after a tool has answered: say the result in words."""
    example, name, values = call_example(rng)
    if rng.random() < 0.35:
        content: str = rng.choice(
            [words.text_value(rng, chinese=False), _nonsense(rng), str(rng.randint(0, 9999))]
        )
        said = content.rstrip(".")
    else:
        keys = rng.sample(words.ARGS, rng.randint(1, 3))
        data = {k: words.argument(rng, k, chinese=rng.random() < 0.2).value for k in keys}
        content = json.dumps(data, ensure_ascii=rng.random() < 0.1)
        said = ", ".join(f"{k}: {v}" for k, v in data.items())
    zh = any("\u4e00" <= c <= "\u9fff" for c in example.messages[0]["content"])
    answer = f"工具的结果是：{said}。" if zh else f"The tool says: {said}."
    call = {"type": "function", "function": {"name": name, "arguments": values}}
    messages = [
        *example.messages,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": content},
    ]
    return Example("result", messages, answer, example.tools)


def thought(example: Example, *, zh: bool) -> str:
    """A short thought before a call, or before the words about its result."""
    if example.kind == "result":
        return "工具已经回答。" if zh else "The tool has answered."
    name = json.loads(example.answer.split("\n", 2)[1])["name"]
    return f"工具 {name} 合适。" if zh else f"The tool {name} fits."
