"""Conversations without tools: questions about edged, small talk, follow-ups, other subjects."""

import random
import re

import offtopic
import words
from facts import TOPICS, Language, Topic
from grammar import held_out, sample
from render import Example

BY_NAME = {topic.name: topic for topic in TOPICS}

FRAMES = (
    "{How do I|How can I|How to|How do you|how would I|how should I|How do we|how might I|How does one} {act}",
    "{What do I do to|What must I do to|What's the way to|What is the best way to|what is the easiest way to|what do I need to do to|what are the steps to|what does it take to|what is needed to} {act}",
    "{Is it possible to|Is there a way to|Can I|Could I|can edged|am I able to|is there any way to|Can we|may I} {act}",
    "{I want to|I need to|I'd like to|I would like to|I have to|We want to|I am trying to|I'm trying to|I wish to|We need to|want to|need to|trying to|I don't know how to|I can't figure out how to|I forgot how to} {act}",
    "{Tell me how to|Show me how to|Explain how to|Can you tell me how to|Could you explain how to|Please explain how to|can you show me how to|Do you know how to|Help me|Help me to|describe how to|teach me how to|remind me how to|any idea how to|Can you help me|I need help to|could you tell me how I can|Please tell me how I can|can you explain how I} {act}",
    "{Where do I|Where can I|Which command do I use to|what command lets me|What is the command to|which command is there to|what do I type to|what do I enter to} {act}",
    "{act}", "{act}{, how| - how| how}", "{Steps to|Instructions to|how-to:|a way to|guide:|howto} {act}",
    "{My boss wants me to|I was told to|someone asked me to|a colleague wants to|It is late and I have to|Now I want to|my customer wants to|today I must} {act}[. How| - how| , how does that work]",
)  # fmt: skip
FRAMES_ZH = (
    "{怎么|如何|怎样|怎么才能|如何才能|要怎么|该怎么|应该怎么|我该如何|我要怎么|我怎么|我如何|要如何|怎样才能|咋} {act}",
    "{我想|我要|我需要|我想要|我们想|我打算|想|要|我得} {act}[，怎么办|，怎么做|，该怎么做|，怎么弄]",
    "{可以|能|能不能|可不可以|能否|是否可以} {act}[ 吗]",
    "{告诉我怎么|教我怎么|请说明如何|请解释怎么|告诉我如何|说说怎么|帮我|帮我看看怎么|请教我|你知道怎么|能告诉我怎么|麻烦说一下怎么|请告诉我如何} {act}",
    "{act}", "{act} {怎么做|怎么办|怎么弄|该怎么做|要怎么做|的方法|的步骤|的命令是什么|有什么办法|怎么操作|如何操作|用什么命令|需要做什么|要做什么}",
    "{什么命令可以|用什么命令|用哪个命令|在哪里可以|哪里可以|在哪} {act}",
    "{老板让我|同事让我|客户要我|现在我想|今天我要|半夜了我要} {act}[，怎么办|，怎么做]",
)  # fmt: skip

OFF = {
    "en": "I am only a small guide to edged, so I cannot help with that. Ask me about models, keys, files, status, logs or errors.",
    "zh": "我只是 edged 的小向导，这个我帮不上忙。可以问我模型、密钥、文件、状态、日志或错误。",
}
FOREIGN = "I understand only English and Chinese. 我只懂英文和中文。"

# Small talk: name → language → (wordings, answer).
TALK = {
    "hello": {
        "en": (("{Hello|Hi|Hey|Good morning|Good evening|Good afternoon|hello there|hi there|greetings|hey there|howdy|good day|yo|Hiya|morning|welcome back|hello again|hey you|hi guide|hello edge-guide|hello edged|hi edge-guide|are you there|anybody there|test|testing|hello world|good night}[ my friend| all| everyone| to you]",),
               "Hello! I am edge-guide. Ask me anything about edged."),
        "zh": (("{你好|您好|嗨|早上好|晚上好|下午好|你好啊|大家好|哈喽|早|早安|hi 你好|你好呀|在吗|有人吗|你在吗|嗨你好|中午好|喂|测试}",), "你好！我是 edge-guide。关于 edged 的问题都可以问我。"),
    },
    "how_are_you": {
        "en": (("{How are you|how are you doing|how is it going|how's it going|what's up|how do you feel|how have you been|are you ok|are you well|you ok|how was your day}[ today| my friend]",), "I am running well, thank you. What would you like to know about edged?"),
        "zh": (("{你好吗|最近怎么样|你怎么样|你还好吗|过得怎么样|你今天怎么样|近来可好|你今天好吗|最近好吗}",), "我运行得很好，谢谢。你想了解 edged 的什么？"),
    },
    "thanks": {
        "en": (("{Thanks|Thank you|thx|many thanks|thanks a lot|thank you very much|cheers|that helped|great, thanks|perfect, thank you|thanks for your help|ty|ok thanks|okay thank you|that was helpful|thank you so much|thanks, that works|it works, thanks|wonderful, thanks|much appreciated|nice, thank you|you helped me a lot|good job|well done|great answer|awesome}[ edge-guide| my friend| for the help]",), "You are welcome."),
        "zh": (("{谢谢|谢谢你|多谢|感谢|非常感谢|谢了|太好了，谢谢|谢谢您|好的谢谢|谢谢你的帮助|太感谢了|帮大忙了|有用，谢谢|明白了，谢谢|懂了谢谢|谢谢啦|干得好|做得好|很棒}",), "不客气。"),
    },
    "bye": {
        "en": (("{Bye|Goodbye|see you|good night|bye bye|see you later|that's all|I have to go|farewell|until next time|I am done|that is all for today|see you tomorrow|quit|exit|take care|catch you later|so long}[ edge-guide| my friend| then]",), "Goodbye!"),
        "zh": (("{再见|拜拜|晚安|回头见|我走了|下次见|就这样吧|没有了|没别的了|先这样|明天见|我先下了|退出|没有其他问题了}",), "再见！"),
    },
    "ok": {
        "en": (("{ok|okay|alright|I see|got it|understood|fine|good|cool|great|nice|clear|all right|makes sense|sure|right|aha|interesting|perfect|yes|no|yep|nope|hmm|wow}",), "Good. Ask me if you need more."),
        "zh": (("{好的|好|明白了|知道了|了解|懂了|嗯|可以|行|清楚了|原来如此|收到|是的|不是|不用了|嗯嗯|哦|好吧|这样啊}",), "好的，有需要再问我。"),
    },
}  # fmt: skip

# After a topic: what is meant by a short or a pronoun question.
FOLLOW = (
    (("add_model", "swap_model", "pull", "sources"), "remove_model",
     ("[and ]{how do I|how can I|how to|can I|how would I} {remove|delete|drop|uninstall|get rid of|take out} {it|that|it again|that one|it later|this one|it afterwards}[ again| later| then]", "{and|what about} {removing|deleting|uninstalling|dropping} {it|that|it again|that one}", "and {if I don't need it|when I no longer need it|if I want it gone}[ any more]"),
     ("{那|}{怎么|如何|怎样}{删除|删掉|去掉|移除|卸载}{它|呢|这个模型|掉呢}", "{那|}{以后|之后|不用了|不需要了|不要了}{怎么删|怎么删除|怎么去掉|怎么办}", "{那|}{删除|移除|卸载|删掉}呢")),
    (("add_model", "remove_model", "pull", "sources"), "swap_model",
     ("[and ]{how do I|how can I|how to|can I} {swap|replace|change|exchange|switch} {it|that|it for another|it later|that one|it for a bigger one}[ later| then]", "{and|what about} {swapping|replacing|exchanging|changing} {it|that|it for another}"),
     ("{那|}{怎么|如何|怎样}{换掉|更换|替换|换成别的}{它|呢|这个模型|}", "{那|}{更换|替换|换一个}呢")),
    (("remove_model", "swap_model", "model_files", "list_models"), "add_model",
     ("[and ]{how do I|how can I|how to|can I} {add|install|get|put} {it back|a new one|another one|one|another|it again|a different one instead}[ then| later| again]", "{and|what about} {adding|installing} {one|a new one|another}"),
     ("{那|}{怎么|如何|怎样}{添加|新增|加|安装}{一个|新的|一个新的|回来|一个呢}", "{那|}{添加|新增|安装}呢")),
    (("add_key", "sdk", "err_401", "lost_key"), "revoke_key",
     ("[and ]{how do I|how can I|how to|can I} {remove|delete|revoke|cancel|get rid of|disable|withdraw} {it|that|it again|that key|it later|the key again}[ again| later| then]", "{and|what about} {revoking|removing|deleting|cancelling} {it|that|a key|the key}", "and if {it leaks|the key leaks|someone steals it|it gets stolen}"),
     ("{那|}{怎么|如何|怎样}{删除|撤销|吊销|删掉|作废|取消}{它|呢|这个密钥|掉呢|密钥}", "{那|}{撤销|删除|吊销|作废}呢", "{那|}{泄露了|被盗了}{呢|怎么办}")),
    (("add_key", "sdk", "revoke_key"), "lost_key",
     ("{and|what} if I {lose|forget|misplace} {it|the key|that}", "{can I|how do I|how can I} {see|show|read|display} {it|that} {again|later|once more|a second time}", "and if I lost it"),
     ("{那|}如果{丢了|忘了|弄丢了|我忘了|我弄丢了}{呢|怎么办|}", "{以后|之后|还}{能|可以}{再看到它|再看|再看一次|找回来}吗", "{丢了|忘了}{呢|怎么办}")),
    (("add_key", "lost_key", "list_models", "alias"), "sdk",
     ("[and ]{where do I put it|how do I use it|what do I do with it|where do I enter it|how does a client use it|how do clients use it|how do I use it from Python|and then in the SDK|how do I use that in the openai library}[ then| now]",),
     ("{那|}{怎么用|怎么使用|填在哪里|放在哪里|在哪里填|客户端怎么用|在 Python 里怎么用|用在哪里}{它|呢|}",)),
    (("add_model", "swap_model", "remove_model", "alias", "context", "parallel", "idle_unload", "pin", "upstream", "sampling", "load", "config_file"), "restart",
     ("{do I have to|must I|should I|do I need to|need I} restart {then|after that|afterwards|it then|edged then|something|anything}", "{and then restart|is a restart needed then|does that need a restart|and a restart}"),
     ("{之后|然后|那|改完}{需要|要|要不要}重启{吗|}", "{那|}要重启吗", "重启呢")),
    (("add_model", "swap_model", "remove_model", "alias", "context", "parallel", "idle_unload", "pin", "upstream", "sampling", "load", "config_file", "lan", "tls"), "check",
     ("{can I|how do I|how can I} {check|test|verify|try} {that|it|this|the change}[ first| before saving| beforehand| before I save]", "{and how do I know it is right|how do I know that it is correct|what if I am not sure|how can I be sure}"),
     ("{那|}{怎么|如何}{先检查|检查|验证|确认}{它|一下|对不对|呢|改动}", "{保存前|先}{怎么检查|能检查吗|能先检查吗|能验证吗}", "怎么知道{写对了|对不对|改对了}")),
    (("add_model", "swap_model", "remove_model", "alias", "context", "parallel", "idle_unload", "pin", "upstream", "sampling", "load", "lan", "tls", "err_config", "check"), "config_file",
     ("[and ]where {is|do I find|can I find} {that file|the file|this file|models.toml|that}", "{which file is that|what file|which file do you mean|in which file|where exactly|and where is the file}"),
     ("{那|}{这个|那个|}文件在{哪里|哪|哪儿}", "{哪个文件|是哪个文件|在哪个文件里|文件在哪|具体在哪里}")),
    (("err_401", "err_404", "err_429", "err_loading", "err_memory", "err_crashed", "err_context", "err_config", "status", "slow"), "logs",
     ("{where do I see|where can I see|where do I find|how do I see|show me} {more|the details|more about it|why|the reason|what happened|more details}", "{and the log|and the logs|what about the logs|and the log files|what about the log}"),
     ("{在哪里|在哪|怎么|哪里}{能看到|看|查看|看到}{详细信息|更多|原因|详情|细节}", "{那|}日志呢")),
    (("add_model", "load", "logs", "err_loading", "err_crashed", "pull", "engine", "swap_model"), "status",
     ("{how do I|how can I|where do I} {see|know|check|find out} {that it works|whether it runs|if it is loaded|if it worked|whether it is ready|that it is running|its state}", "{and the status|what about the status|is it loaded then|and its state}"),
     ("{怎么|如何}{知道|看|确认}{它|}{加载好了|成功了|运行了没有|是否成功|有没有加载|状态}", "{那|}状态呢")),
    (("add_model", "swap_model", "list_models"), "alias",
     ("{can it|can I make it|may it} have {another name|a second name|an alias|two names}", "{can I|how do I} {give it another name|give it a second name|rename it|call it gpt-4}"),
     ("{能|可以}给它{起别名|另一个名字|改名|起个别的名字}吗", "{那|}{别名|改名}呢")),
    (("add_model", "pull", "swap_model", "sources"), "model_files",
     ("where {is it|does it go|is it stored|is it saved|does it lie|will it be stored|do the files go}[ on disk| then]",),
     ("它{存在哪里|放在哪里|在哪里|下载到哪里|保存在哪}", "{下载到哪里|存在哪里|放在哪|文件会放在哪里}[呢]")),
    (("engine", "status", "slow", "install"), "gpu",
     ("{and with a GPU|and the GPU|what about the GPU|and without a GPU|what about my graphics card|does it use the GPU|and my GPU|and if I have no GPU}",),
     ("{那|}{GPU|显卡}呢", "{有|没有}{显卡|GPU}呢", "那它用 GPU 吗")),
    (("status", "gpu", "slow"), "engine",
     ("{and which engine|what engine is that|which engine does it use|and the engine|what about the engine|why that engine}",),
     ("{那|}引擎呢", "{用的是哪个引擎|用什么引擎|那用哪个引擎}")),
    (("err_context",), "context", ("{how do I raise it|where do I set that|how do I change that|and how do I make it bigger|how do I increase it|how do I raise the limit}[ then]",), ("{那|}{怎么调大|怎么改|在哪里设置|怎么增加|怎么设置}{它|呢|}",)),
    (("err_429",), "parallel", ("{how do I raise it|how do I answer more at once|how can I serve more at once|how do I allow more at the same time|and for more at once}",), ("{怎么|如何}{同时处理更多|提高并发|允许更多|让它同时回答更多}",)),
    (("update",), "restart", ("{do I have to restart then|must I restart after that|and then restart|is a restart needed}",), ("{之后|然后|更新后}{要|需要}重启吗",)),
)  # fmt: skip

REPEAT = {
    "en": "{Can you repeat that|repeat that|say that again|again please|once more|what did you say|please repeat|one more time|pardon|could you say that again|come again|repeat please|I did not get that|repeat the last answer}",
    "zh": "{再说一遍|请重复|重复一下|再说一次|你说什么|刚才说什么|请再说一遍|没听清|再来一遍|重复一遍}",
}
TO_OTHER = {
    "zh": "{in Chinese|in Chinese please|and in Chinese|can you say that in Chinese|please answer in Chinese|now in Chinese|translate that to Chinese|用中文说|用中文回答|中文|请用中文|说中文|用中文怎么说|能用中文说吗}",
    "en": "{in English|in English please|and in English|can you say that in English|please answer in English|now in English|translate that to English|用英文说|用英语回答|英文|请用英文|说英语|能用英文说吗}",
}
NAME_SAID = {
    "en": ("{My name is|I am|I'm|call me|this is|hi, I am|hello, my name is|hey, I'm|You can call me|people call me} NAME", "Nice to meet you, NAME. What would you like to know about edged?"),
    "zh": ("{我叫|我的名字是|我是|你好，我叫|叫我|大家叫我|你可以叫我} NAME", "很高兴认识你，NAME。你想了解 edged 的什么？"),
}  # fmt: skip
NAME_ASKED = {
    "en": ("{What is my name|do you know my name|who am I|what's my name|tell me my name|do you remember my name|say my name|what am I called}", "Your name is NAME.", "You have not told me your name."),
    "zh": ("{我叫什么|我的名字是什么|你知道我的名字吗|我是谁|你记得我叫什么吗|还记得我的名字吗|说出我的名字}", "你叫 NAME。", "你还没有告诉我你的名字。"),
}  # fmt: skip

SYSTEM = (
    "You are {a|an} {helpful|friendly|useful|smart|honest|expert|polite|kind} {assistant|AI assistant|chatbot|AI|helper|bot}[.]",
    "You are a helpful assistant.", "You are a helpful assistant.", "You are a helpful AI assistant.",
    "{Answer|Reply|Respond} {briefly|shortly|politely|in one sentence|precisely|in full sentences|concisely|truthfully}[ and honestly].",
    "You are {ChatGPT|Claude|Qwen|edge-guide|Assistant|Alex|a support agent|Jarvis}, {a large language model|an AI model|the assistant of this box|created by WHO|made to help}.",
    "{Be|Please be|Always be} {concise|friendly|helpful|brief|formal|polite|accurate|nice}.", "You are a {WORK} of {WHO}. {Help|Assist|Serve|Support} {the user|users|customers|people}[ with their questions].",
    "Today is 20YY-MM-DD.[ You are a helpful assistant.]", "You are the guide of this appliance.", "You help people who run edged.", "{你是|您是}一个{有用|友好|聪明|专业}的{助手|人工智能助手|机器人|AI 助手}。", "请{简短|用中文|礼貌|准确}回答。",
    "You are a coding assistant[. Write clean code].", "You are {an expert|a specialist} in {WORD}, {WORD} and {WORD}.", "{The user|The customer|Someone} is called {WHO}[ and likes {WORD}].", "Do not {lie|invent facts|make things up|use markdown|mention {WORD}}.", "{WHO} {WORD} {WORD}.",
)  # fmt: skip


def system_prompt(rng: random.Random) -> str:
    """One of the system prompts that clients send; it changes nothing."""
    text = " ".join(sample(rng.choice(SYSTEM), rng) for _ in range(rng.choice([1, 1, 1, 2])))
    text = text.replace("YY", f"{rng.randint(20, 39)}").replace(
        "MM-DD", f"{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
    )
    for slot in ("WHO", "WORK", "WORD"):
        while slot in text:
            maker = words.syllables(rng).capitalize() if slot == "WHO" else rng.choice(words.WORDS)
            text = text.replace(slot, maker if rng.random() < 0.8 else words.syllables(rng), 1)
    return text


def core(rng: random.Random, language: Language, *, zh: bool, held: bool = False) -> str:
    """A wording of a topic's question, either one for training or one kept for the evaluation."""
    while True:
        weights = (len(language.act) * 3, len(language.ask))
        if rng.random() < weights[0] / sum(weights):
            act = sample(rng.choice(language.act), rng)
            frame = rng.choice(FRAMES_ZH if zh else FRAMES).replace("{act}", "\x00")
            text = sample(frame, rng).replace("\x00", act)
            if zh:
                text = re.sub(r"(?<=[\u4e00-\u9fff，]) (?=[\u4e00-\u9fff])", "", text)
        else:
            text = sample(rng.choice(language.ask), rng)
        if held_out(text) is held:
            return text


PREFIX = (
    "Please ",
    "Hi, ",
    "Hello, ",
    "Hey, ",
    "Sorry, ",
    "Excuse me, ",
    "Quick question: ",
    "ok, ",
    "So, ",
    "Hi! ",
    "Good morning. ",
    "One question: ",
    "Now ",
    "Well, ",
    "And ",
    "also, ",
    "Hey edge-guide, ",
)
SUFFIX = (
    " please",
    " on edged",
    " in edged",
    " here",
    " on this box",
    " please?",
    " thanks",
    ", please",
    " with edged",
    " now",
    " exactly",
    " for me",
    " on my box",
    " in short",
)
PREFIX_ZH = (
    "请问",
    "请问一下，",
    "你好，",
    "你好，请问",
    "麻烦问一下，",
    "不好意思，",
    "问一下",
    "那",
    "请教一下，",
    "想问一下",
    "您好，",
    "那么",
    "还有，",
    "快速问一下：",
)
SUFFIX_ZH = ("呢", "啊", "谢谢", "，谢谢", "一下", "呀", "，急")


def dress(  # noqa: C901 - a list of independent habits
    rng: random.Random, text: str, *, zh: bool, plain: bool = False
) -> str:
    """Politeness, capitals, punctuation and typos, as people write or forget them."""
    if zh:
        if not plain and rng.random() < 0.2:
            text = rng.choice(PREFIX_ZH) + text
        if not plain and rng.random() < 0.08:
            text += rng.choice(SUFFIX_ZH)
        if rng.random() < 0.35:
            text = re.sub(
                r"(?<=[\u4e00-\u9fff]) (?=[\x21-\x7e])|(?<=[\x21-\x7e]) (?=[\u4e00-\u9fff])",
                "",
                text,
            )
        if rng.random() < 0.15:
            text = text.lower()
        return text + rng.choice(["", "", "？", "？", "?", "。", "！"])
    if not plain and rng.random() < 0.15:
        text = rng.choice(PREFIX) + text
    if not plain and rng.random() < 0.15:
        text += rng.choice(SUFFIX)
    if rng.random() < 0.06 and len(text) > 12:
        text = _typo(rng, text)
    case = rng.random()
    if case < 0.4:
        text = text[0].upper() + text[1:]
    elif case < 0.75:
        text = text.lower()
    elif case < 0.77:
        text = text.upper()
    return text + rng.choice(["", "", "?", "?", "?", ".", "!", "??", " ?"])


def _typo(rng: random.Random, text: str) -> str:
    i = rng.randint(1, len(text) - 3)
    kind = rng.random()
    if kind < 0.4:
        return text[:i] + text[i + 1] + text[i] + text[i + 2 :]
    if kind < 0.7:
        return text[:i] + text[i + 1 :]
    return text[:i] + text[i] + text[i:]


def topic_turn(
    rng: random.Random, topic: Topic, *, zh: bool, held: bool = False
) -> tuple[str, str, str]:
    """Question, answer and thought about one topic."""
    language = topic.zh if zh else topic.en
    question = dress(rng, core(rng, language, zh=zh, held=held), zh=zh)
    thought = (
        f"用户问的是：{language.gist}。这个我知道。"
        if zh
        else f"The user asks about {language.gist}. I know this."
    )
    return question, language.answer, thought


def talk_turn(rng: random.Random, name: str, *, zh: bool) -> tuple[str, str, str]:
    """Small talk."""
    wordings, answer = TALK[name]["zh" if zh else "en"]
    question = dress(rng, sample(rng.choice(wordings), rng), zh=zh, plain=True)
    return question, answer, "用户在寒暄。" if zh else "This is small talk."


def off_turn(rng: random.Random, *, zh: bool) -> tuple[str, str, str]:
    """A question about something else."""
    if rng.random() < 0.07:
        return (
            dress(rng, sample(rng.choice(offtopic.FOREIGN), rng), zh=False, plain=True),
            FOREIGN,
            "This is neither English nor Chinese.",
        )
    question = dress(rng, offtopic.question(rng, zh=zh), zh=zh, plain=rng.random() < 0.5)
    thought = "这与 edged 无关，我要如实说明。" if zh else "This is not about edged. I must say so."
    return question, OFF["zh" if zh else "en"], thought


def any_turn(rng: random.Random, *, zh: bool) -> tuple[str, str, str, Topic | None]:
    """A random turn and, if it was about edged, its topic."""
    kind = rng.random()
    if kind < 0.68:
        topic = rng.choice(TOPICS)
        return *topic_turn(rng, topic, zh=zh), topic
    if kind < 0.76:
        return *talk_turn(rng, rng.choice(list(TALK)), zh=zh), None
    return *off_turn(rng, zh=zh), None


def follow_turn(
    rng: random.Random, before: Topic, *, zh: bool, held: bool = False
) -> tuple[str, str, str] | None:
    """A short question whose sense comes from the topic before it."""
    rules = [rule for rule in FOLLOW if before.name in rule[0]]
    if not rules:
        return None
    _, target, en, zh_patterns = rng.choice(rules)
    for _ in range(200):
        text = sample(rng.choice(zh_patterns if zh else en), rng)
        if held_out(before.name + text) is held:
            language = BY_NAME[target].zh if zh else BY_NAME[target].en
            thought = (
                f"用户问的是：{language.gist}。这个我知道。"
                if zh
                else f"The user asks about {language.gist}. I know this."
            )
            return dress(rng, text, zh=zh, plain=True), language.answer, thought
    return None


def conversation(rng: random.Random, *, zh: bool) -> Example:
    """Two to five turns that hang together more or less."""
    messages: list[dict[str, str]] = []
    name = ""
    turns = rng.choice([2, 2, 2, 3, 3, 4, 5])
    before: Topic | None = None
    answer = thought = ""
    for turn in range(turns):
        question, answer, thought, topic = _turn(rng, messages, before, name, zh=zh, turn=turn)
        found = re.search(r"\x01(.*)\x01", question)
        if found:
            name = found.group(1)
            question = question.replace("\x01", "")
        before = topic
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    messages.pop()
    return finish(rng, Example("turns", messages, answer), thought)


def _turn(  # noqa: PLR0911 - one return for each kind of turn
    rng: random.Random,
    messages: list[dict[str, str]],
    before: Topic | None,
    name: str,
    *,
    zh: bool,
    turn: int,
) -> tuple[str, str, str, Topic | None]:
    r"""The next turn of a conversation; a name that the user tells stands between \x01 marks."""
    language = "zh" if zh else "en"
    kind = rng.random()
    if turn == 0 and kind < 0.15:
        pattern, reply = NAME_SAID[language]
        name = _person(rng, zh=zh)
        question = sample(pattern, rng).replace("NAME", f"\x01{name}\x01") + rng.choice(
            ["", ".", "!"]
        )
        thought = "用户告诉我名字。" if zh else "The user tells me a name."
        return question, reply.replace("NAME", name), thought, None
    if turn > 0 and kind < (0.35 if name else 0.04):
        pattern, known, unknown = NAME_ASKED[language]
        return (
            dress(rng, sample(pattern, rng), zh=zh, plain=True),
            known.replace("NAME", name) if name else unknown,
            "用户问自己的名字。" if zh else "The user asks for their name.",
            None,
        )
    if before and kind < 0.7:
        follow = follow_turn(rng, before, zh=zh)
        if follow and rng.random() < 0.8:
            topic = next(t for t in TOPICS if follow[1] in (t.en.answer, t.zh.answer))
            return *follow, topic
        other = rng.choice(["en", "zh"])
        said_zh = messages[-1]["content"] == before.zh.answer
        if rng.random() < 0.5 and (other == "zh") is not said_zh:
            answer = before.zh.answer if other == "zh" else before.en.answer
            return (
                dress(rng, sample(TO_OTHER[other], rng), zh=zh, plain=True),
                answer,
                "同样的回答，换一种语言。" if zh else "The same answer in the other language.",
                before,
            )
    if messages and kind < 0.75:
        return (
            dress(rng, sample(REPEAT[language], rng), zh=zh, plain=True),
            messages[-1]["content"],
            "重复上一个回答。" if zh else "I repeat my last answer.",
            before,
        )
    if messages and kind < 0.83:
        return *talk_turn(
            rng, rng.choice(["thanks", "thanks", "bye", "ok", "how_are_you"]), zh=zh
        ), None
    return any_turn(rng, zh=zh)


def _person(rng: random.Random, *, zh: bool) -> str:
    if zh and rng.random() < 0.6:
        return rng.choice(words.PEOPLE_ZH)
    return rng.choice(
        [
            rng.choice(words.PEOPLE),
            words.syllables(rng).capitalize(),
            words.syllables(rng).capitalize(),
        ]
    )


def finish(rng: random.Random, example: Example, thought: str, *, think: float = 0.12) -> Example:
    """Add a system prompt and, now and then, thinking."""
    if rng.random() < 0.35:
        example.messages.insert(0, {"role": "system", "content": system_prompt(rng)})
    if rng.random() < think:
        example.thinking = True
        example.answer = f"<think>\n{thought}\n</think>\n\n{example.answer}"
    return example


def single(rng: random.Random) -> Example:
    """One question, one answer."""
    zh = rng.random() < 0.45
    kind = rng.random()
    if kind < 0.63:
        turn, name = topic_turn(rng, rng.choice(TOPICS), zh=zh), "topic"
    elif kind < 0.70:
        turn, name = talk_turn(rng, rng.choice(list(TALK)), zh=zh), "talk"
    else:
        turn, name = off_turn(rng, zh=zh), "off"
    question, answer, thought = turn
    return finish(rng, Example(name, [{"role": "user", "content": question}], answer), thought)
