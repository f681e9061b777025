"""Questions that no grammar made: written by hand for the evaluation, never trained on."""

# topic → wordings
EN = {
    "what_is": ("So this edged thing, what's it all about?", "In two sentences, what would I be getting with edged?", "can you explain to me what edged is"),
    "who": ("Who's there?", "And you are?", "which LLM am I chatting with right now"),
    "can_do": ("What sort of things can you help me with?", "what could I ask you about?"),
    "add_model": ("How do I add a model?", "I'd like Llama 3 on this machine, what now?", "what do I need to do so that a second model shows up", "adding models?", "can you walk me through installing a new model", "how to get qwen running"),
    "swap_model": ("how can i replace the model we use with a newer one", "I want to switch to a different model", "what's the procedure for swapping one model for another?", "can I change the model without downtime?"),
    "remove_model": ("how do I get rid of a model", "I don't need that model any more, how do I delete it?", "uninstall a model", "What is the correct way to take a model out again?"),
    "add_key": ("How do I get an API key?", "where can I get a key for my app", "a colleague needs access to the API, what do I do?", "how do I create api keys?", "I need a token for a new client"),
    "revoke_key": ("one of our keys leaked, what should I do", "how do I revoke an API key?", "how can I block a key that someone stole"),
    "lost_key": ("I lost my API key", "I closed the terminal and forgot to copy the key", "can I look at my key again?"),
    "sdk": ("How do I use it from the OpenAI Python SDK?", "what do I put into base_url?", "which URL do my clients have to use", "how do I connect Open WebUI to this box", "what port is the API on?"),
    "files": ("Where are the files?", "which directories does edged use?", "where does edged put its stuff on disk?", "what should be in my backup?"),
    "config_file": ("where's the config file", "Which file do I have to edit?", "where is models.toml?", "how do I change the settings of edged"),
    "model_files": ("where are downloaded models stored", "in which folder do the gguf files end up?"),
    "status": ("How can I see what is running?", "is my model loaded?", "how do I check the status", "show me which models are running", "how much memory is in use right now?"),
    "logs": ("where are the logs?", "How do I read the logs", "something went wrong last night, where do I look?", "how do I see error messages"),
    "check": ("how do I test my config before saving it?", "is there a way to validate models.toml", "what does edged check do"),
    "engine": ("Which engine does my model run on?", "why is llama.cpp used instead of LMDeploy?", "how does edged decide which engine to take?"),
    "gpu": ("Do I need a GPU?", "will it use my NVIDIA card?", "why is my GPU idle", "can it run without a graphics card?"),
    "err_401": ("I get 401 invalid_api_key", "my client says unauthorized, why?", "what does error 401 mean?", "the server rejects my key"),
    "err_404": ("I get model_not_found", "what does 404 mean here?", "it says the model doesn't exist"),
    "err_429": ("why do I get 429?", "queue_full error, what to do", "too many requests - what does that mean?"),
    "err_loading": ("what is model_loading?", "I get 503 model_loading all the time", "the model is still loading, what can I do?"),
    "err_memory": ("insufficient_memory, what now?", "my model doesn't fit into memory", "how can I use less RAM?"),
    "err_crashed": ("What does worker_crashed mean?", "my model crashed, what should I do", "what happens when a model crashes?"),
    "err_context": ("context_length_exceeded - what is that?", "my prompt is too long", "error 400 context_length_exceeded what should I do"),
    "err_config": ("what happens if I make a mistake in models.toml?", "my change was not applied, why?", "I broke the config file, will everything stop?"),
    "alias": ("how do I give a model a second name?", "what's an alias", "my app only knows gpt-4o-mini, what can I do?"),
    "context": ("How do I make the context longer?", "what's the maximum number of tokens", "where do I set the context length?"),
    "parallel": ("how many users can use it at the same time?", "how do I allow more parallel requests", "can two people use the same model at once?"),
    "idle_unload": ("why was my model unloaded?", "how do I keep a model in memory forever", "what does idle_unload do?"),
    "pin": ("what does pin = true do?", "how do I make sure a model is never evicted"),
    "upstream": ("can edged forward requests to a vLLM server?", "how do I add an upstream", "what is upstream for?"),
    "lan": ("How do I make it available on my LAN?", "other computers can't connect to edged", "how do I change the port?", "how can I reach the box from another machine?"),
    "offline": ("Does it work without internet?", "is my data sent anywhere?", "can I use it offline"),
    "update": ("How do I update edged?", "how can I upgrade to a newer version", "is there a new version?"),
    "install": ("how do I install edged on another server", "does it run on Ubuntu?"),
    "help_command": ("what commands are there?", "where can I find the documentation", "list the edged commands"),
    "list_models": ("Which models are available?", "list all models", "what model names can clients use?"),
    "restart": ("How do I restart edged?", "do I have to restart it after editing the config?", "how do I stop the service"),
    "sampling": ("how do I set the temperature?", "where can I change top_p for a model"),
    "load": ("how do I load a model at startup?", "what does load on-demand mean"),
    "sources": ("where can models come from?", "can I download models from ModelScope?", "what does hf: mean?"),
    "pull": ("how do I download a model right now?", "what does edged pull do?", "how do I see the download progress"),
    "ask": ("can I try a model in the terminal?", "how do I ask a model something from the command line"),
    "tls": ("How do I enable HTTPS?", "is the connection encrypted?"),
    "metrics": ("is there a health check endpoint?", "how do I monitor edged with Prometheus"),
    "slow": ("why are the answers so slow?", "how do I make my model faster", "it's really slow today"),
    "small": ("why can't you answer that?", "you are not very smart"),
}  # fmt: skip

ZH = {
    "what_is": ("edged 是什么？", "能简单介绍一下 edged 吗", "edged到底有啥用"),
    "who": ("你是谁？", "你叫什么名字", "请做个自我介绍"),
    "can_do": ("你能做什么？", "你可以帮我做些什么"),
    "add_model": ("如何添加模型？", "我想再装一个模型", "怎样才能用上新的模型", "请问怎么添加一个大模型", "模型怎么安装"),
    "swap_model": ("怎么换模型？", "我想把现在的模型换成更大的", "如何替换模型"),
    "remove_model": ("怎么删除模型？", "这个模型我不用了，怎么删", "如何卸载一个模型"),
    "add_key": ("怎么获取 API 密钥？", "我需要一个密钥", "如何创建api key", "怎么给同事开通访问权限"),
    "revoke_key": ("密钥泄露了怎么办？", "如何撤销密钥"),
    "lost_key": ("我的密钥丢了怎么办", "忘记密钥了"),
    "sdk": ("怎么用 OpenAI SDK 连接？", "base_url 应该填什么", "接口地址是多少", "端口是多少"),
    "files": ("文件都放在哪里？", "edged 用到哪些目录"),
    "config_file": ("配置文件在哪？", "models.toml 在哪里", "怎么修改配置"),
    "model_files": ("模型下载到哪里了", "模型文件存在哪儿？"),
    "status": ("怎么查看状态？", "现在有哪些模型在运行", "怎么看内存占用"),
    "logs": ("日志在哪里？", "怎么看日志", "出错了去哪里看原因"),
    "check": ("怎么检查配置有没有错", "edged check 是做什么的"),
    "engine": ("用的是哪个引擎？", "为什么用 llama.cpp"),
    "gpu": ("需要显卡吗？", "为什么没有用 GPU", "没有显卡可以用吗"),
    "err_401": ("401 是什么意思？", "一直报 401 怎么办", "我的密钥不能用"),
    "err_404": ("404 是什么意思", "提示模型不存在怎么办"),
    "err_429": ("为什么会返回 429", "请求太多怎么办"),
    "err_loading": ("model_loading 是什么意思", "模型一直在加载怎么办"),
    "err_memory": ("内存不足怎么办？", "模型太大放不下"),
    "err_crashed": ("worker_crashed 怎么办", "模型崩溃了怎么办"),
    "err_context": ("提示太长了怎么办", "context_length_exceeded 是什么"),
    "err_config": ("配置写错了会怎样？", "我改了配置但是没有生效"),
    "alias": ("怎么设置别名", "模型可以有两个名字吗"),
    "context": ("怎么加大上下文？", "上下文长度是多少"),
    "parallel": ("可以同时处理多少请求", "怎么提高并发"),
    "idle_unload": ("模型为什么被卸载了", "怎么让模型一直在内存里"),
    "pin": ("pin 是什么意思", "怎么固定模型"),
    "upstream": ("怎么把请求转发到另一台服务器", "upstream 怎么用"),
    "lan": ("怎么让局域网里的电脑访问？", "其他电脑连不上怎么办", "怎么修改端口"),
    "offline": ("没有网络能用吗？", "我的数据会上传吗"),
    "update": ("怎么更新 edged", "如何升级到最新版"),
    "install": ("怎么安装 edged", "支持哪些系统"),
    "help_command": ("有哪些命令？", "文档在哪里"),
    "list_models": ("有哪些模型可以用", "怎么列出所有模型"),
    "restart": ("怎么重启 edged？", "改完配置要重启吗"),
    "sampling": ("怎么设置温度", "temperature 在哪里改"),
    "load": ("怎么让模型开机就加载", "按需加载是什么意思"),
    "sources": ("模型可以从哪里下载", "支持魔搭吗"),
    "pull": ("怎么马上下载模型", "edged pull 是什么"),
    "ask": ("能在终端里试用模型吗", "怎么在命令行提问"),
    "tls": ("怎么启用 HTTPS", "连接是加密的吗"),
    "metrics": ("有健康检查接口吗", "怎么用 Prometheus 监控"),
    "slow": ("为什么这么慢？", "怎么让回答快一点"),
    "small": ("你怎么这么笨", "为什么你不知道"),
}  # fmt: skip

OFF_EN = (
    "What is the capital of France?", "Who wrote Faust?", "What's 17 times 23?", "Write a poem about the sea.", "Can you recommend a good Italian restaurant?", "How do I bake sourdough?",
    "Write me a Python function that reverses a linked list", "my knee hurts when I run, what could it be?", "who is the current president of the united states", "Summarize the plot of Titanic.",
    "how many legs does a spider have", "Explain general relativity like I'm five", "what should I wear to a wedding?", "Is it going to rain tomorrow?", "Tell me a joke", "How do I remove red wine from a carpet?",
    "how do I add a signature in Outlook", "what's the best programming language", "Why is the sky blue?", "Plan a three day trip to Rome", "how do I change a light bulb", "Which phone should I buy?", "what happened in 1989?", "translate good morning into Spanish",
    "How tall is Mount Everest?", "Give me a workout plan", "who won the last champions league", "what is the meaning of life", "asdfgh", "the quick brown fox jumps over the lazy dog", "how do I delete my Facebook account?", "do you believe in God?",
)  # fmt: skip
OFF_ZH = (
    "法国的首都是哪里？", "今天天气怎么样", "写一首关于春天的诗", "红烧肉怎么做", "125乘以8等于多少", "讲个笑话吧", "谁是爱因斯坦", "我头疼怎么办", "推荐一部好看的电影", "什么是量子力学",
    "用Python写一个快速排序", "怎么减肥", "世界上最高的山是什么", "帮我翻译一下这句话", "现在几点了", "人生的意义是什么", "北京有什么好玩的", "怎么学好英语", "股票今天涨了吗", "你喜欢我吗", "猫为什么喜欢睡觉", "如何删除微信聊天记录",
)  # fmt: skip


def _f(name: str, description: str, **properties: str) -> dict:
    """A function with all its parameters required."""
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {k: {"type": t} for k, t in properties.items()},
                "required": list(properties),
            },
        },
    }


_WEATHER = _f(
    "get_current_weather", "Get the current weather in a given location", location="string"
)
_STOCK = _f("get_stock_price", "Get the current stock price of a company", symbol="string")
_MAIL = _f("send_email", "Send an email to a recipient", to="string", subject="string")
_ADD = _f("add_numbers", "Add two numbers", a="number", b="number")
_LIGHT = _f("set_light", "Switch the light in a room", room="string", state="string")
_USER = _f("fetchUserProfile", "Fetch the profile of a user", user_id="integer")
_SEARCH = _f("search_documents", "Search in the company documents", query="string")
_FLIGHT = _f("bookFlight", "Book a flight", origin="string", destination="string")
_ROTATE = _f("rotate_image", "Rotate an image by some degrees", path="string", degrees="integer")
_NOW = _f("get_current_time", "Get the current time", timezone="string")
_FROB = _f("frobnicate", "Frobnicates the given widget", widget="string")
_PING = _f("ping_host", "Ping a host", host="string")
_STATUS = _f("machine_status", "Status of all machines")

# tools at hand, wish, name, arguments
CALLS = (
    ([_WEATHER], "What's the weather like in Boston?", "get_current_weather", {"location": "Boston"}),
    ([_WEATHER, _STOCK], "How is the weather in Ulm today?", "get_current_weather", {"location": "Ulm"}),
    ([_STOCK, _MAIL], "What is the stock price of NVDA?", "get_stock_price", {"symbol": "NVDA"}),
    ([_ADD], "Add 17 and 25", "add_numbers", {"a": 17, "b": 25}),
    ([_ADD, _WEATHER, _USER], "What is 3 plus 4?", "add_numbers", {"a": 3, "b": 4}),
    ([_LIGHT], "Turn the light in the kitchen off", "set_light", {"room": "kitchen", "state": "off"}),
    ([_LIGHT, _WEATHER], "Switch on the lamp in the bedroom please", "set_light", {"room": "bedroom", "state": "on"}),
    ([_USER], "Get the profile of user 4711", "fetchUserProfile", {"user_id": 4711}),
    ([_SEARCH, _USER], "Search for vacation policy", "search_documents", {"query": "vacation policy"}),
    ([_FLIGHT], "Book a flight from Hamburg to Oslo", "bookFlight", {"origin": "Hamburg", "destination": "Oslo"}),
    ([_FLIGHT, _MAIL, _ADD], "I need a flight from Vienna to Lagos.", "bookFlight", {"origin": "Vienna", "destination": "Lagos"}),
    ([_ROTATE], "Rotate cat.png by 90 degrees", "rotate_image", {"path": "cat.png", "degrees": 90}),
    ([_NOW], "What time is it in Tokyo?", "get_current_time", {"timezone": "Tokyo"}),
    ([_FROB], "Frobnicate the widget blorp", "frobnicate", {"widget": "blorp"}),
    ([_FROB, _PING], "please ping the host gateway7", "ping_host", {"host": "gateway7"}),
    ([_PING, _STATUS], "Call machine_status", "machine_status", {}),
    ([_MAIL], "Send an email to anna@example.com with the subject Hello", "send_email", {"to": "anna@example.com", "subject": "Hello"}),
    ([_WEATHER, _NOW], "北京天气怎么样？", "get_current_weather", {"location": "北京"}),
    ([_NOW], "东京现在几点？", "get_current_time", {"timezone": "东京"}),
    ([_STOCK, _SEARCH], "查一下 AAPL 的股价", "get_stock_price", {"symbol": "AAPL"}),
    ([_FLIGHT], "帮我订一张从上海到成都的机票", "bookFlight", {"origin": "上海", "destination": "成都"}),
    ([_SEARCH], "搜索年假制度", "search_documents", {"query": "年假制度"}),
)  # fmt: skip
