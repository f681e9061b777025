# ruff: noqa: RUF001 - Chinese punctuation is what is asked with
"""What edge-guide and its peers are asked: the greedy answers must be the same.

English and Chinese, what it knows and what it does not, several turns, tools, results, thinking.
"""

from typing import Any, NamedTuple

from tests.bench.prompts import assistant, system, user

Message = dict[str, Any]


class Conversation(NamedTuple):
    """The fields of a chat completion that matter to the answer."""

    messages: list[Message]
    tools: tuple[dict[str, Any], ...] = ()
    thinking: bool = False


def _tool(name: str, description: str, **properties: str) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in properties.items()},
        "required": list(properties),
        # Where a schema leaves this open, edged's grammar allows others, llama-server's does not.
        "additionalProperties": False,
    }
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


def _called(call_id: str, name: str, arguments: str) -> Message:
    function = {"name": name, "arguments": arguments}
    calls = [{"id": call_id, "type": "function", "function": function}]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def _result(call_id: str, content: str) -> Message:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


WEATHER = _tool("get_weather", "Get the current weather in a city.", city="string")
TRAIN = _tool("find_train", "Find a train between two cities.", origin="string", to="string")
ORDER = _tool("track_order", "Status of an order.", order_id="string")
CUSTOMER = _tool("get_customer", "Returns a customer by id.", id="integer")
TOOLS = (WEATHER, TRAIN, ORDER, CUSTOMER)
BRIEF = system("You are a helpful guide to this box. Be brief.")

_QUESTIONS = (
    "What is edged?",
    "How do I add a model?",
    "How do I remove a model again?",
    "Where are the logs?",
    "How do I get an API key?",
    "How do I connect the OpenAI SDK?",
    "What happens when I save models.toml?",
    "What does `edged check` do?",
    "I get the error model_loading, what now?",
    "Does it work without a network?",
    "Which engine is used on a GPU?",
    "How do I update edged?",
    "How long may a prompt be?",
    "What is the capital of France?",
    "Write a poem about the sea, with ten verses, please!",
    "hwo do i delte the modle",
    "edged 是什么？",
    "如何添加模型？",
    "怎么删除模型",
    "日志在哪里？",
    "怎样获得 API 密钥？",
    "用 Python 怎么连接？",
    "报错 model_loading 是什么意思",
    "换模型会中断服务吗？",
    "edged 怎么升级",
    "没有网络能用吗？",
    "法国的首都是哪里？",
    "Was ist edged?",
)
_TURNS = (
    ("How do I add a model?", "Edit models.toml and save it.", "And how do I remove it again?"),
    ("What is edged?", "edged turns a box into an LLM appliance.", "Where are its logs?"),
    ("Hi!", "Hello, I am the guide to this box.", "Which file do I edit?", "models.toml", "Where?"),
    ("如何添加模型？", "编辑 models.toml 并保存。", "那怎么删除？"),
    ("edged 是什么？", "edged 是大模型一体机。", "How do I get a key?"),
)


def _turns(*texts: str) -> list[Message]:
    return [(user, assistant)[i % 2](text) for i, text in enumerate(texts)]


CONVERSATIONS = (
    *(Conversation([user(question)]) for question in _QUESTIONS),
    *(Conversation([BRIEF, user(question)]) for question in _QUESTIONS[::7]),
    *(Conversation(_turns(*texts)) for texts in _TURNS),
    Conversation([BRIEF, *_turns(*_TURNS[0])]),
    Conversation([user("What is the weather in Oslo?")], (WEATHER,)),
    Conversation([user("Is it raining in Lisbon today?")], TOOLS),
    Conversation([user("Find a train from Berlin to Prague, please")], TOOLS),
    Conversation([user("Where is my order A-1047?")], TOOLS),
    Conversation([user("Show customer 4711")], (CUSTOMER, ORDER)),
    Conversation([user("上海今天天气怎么样？")], (WEATHER,)),
    Conversation([user("查询订单 B-20931 的状态")], TOOLS),
    Conversation([user("What is edged?")], TOOLS),
    Conversation(
        [
            user("What is the weather in Oslo?"),
            _called("call00001", "get_weather", '{"city": "Oslo"}'),
            _result("call00001", '{"temperature": 7, "sky": "rain"}'),
        ],
        (WEATHER,),
    ),
    Conversation(
        [
            BRIEF,
            user("查询订单 B-20931 的状态"),
            _called("call00001", "track_order", '{"order_id": "B-20931"}'),
            _result("call00001", '{"status": "shipped"}'),
        ],
        (ORDER,),
    ),
    Conversation([user("How do I add a model?")], thinking=True),
    Conversation([user("如何添加模型？")], thinking=True),
)
