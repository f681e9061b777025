"""Questions that edge-guide cannot answer: everything that is not edged."""

import random

import words
from grammar import sample

COUNTRIES = (
    "France Germany Italy Spain Japan China India Brazil Canada Mexico Egypt Kenya Nigeria Norway Sweden Finland Poland"
    " Austria Greece Turkey Russia Peru Chile Argentina Cuba Ireland Scotland Portugal Denmark Belgium Vietnam Thailand"
    " Australia Morocco Iran Iraq Pakistan Ukraine Hungary Switzerland Colombia Ethiopia Ghana Nepal Mongolia"
).split()
FOODS = (
    "bread cake soup pizza pasta pancakes rice curry salad sushi tacos chili pie cookies lasagna omelette bread dumplings"
    " steak stew coffee tea beer wine jam yogurt cheese noodles burgers risotto brownies waffles hummus"
).split()
ANIMALS = "cat dog horse cow elephant lion tiger whale shark eagle penguin snake spider bee wolf bear fox rabbit mouse frog owl giraffe dinosaur octopus".split()
PERSONS = "Einstein Newton Shakespeare Mozart Napoleon Cleopatra Picasso Beethoven Darwin Gandhi Lincoln Obama Plato Aristotle Turing Curie Tesla Galileo Columbus Messi Ronaldo Beyonce Hitchcock Kafka Goethe Confucius Churchill Caesar Rembrandt".split()
SCIENCE = (
    "gravity photosynthesis entropy evolution electricity relativity inflation democracy capitalism magnetism osmosis"
    " algebra calculus philosophy psychology DNA quantum-physics blockchain bitcoin climate-change astrology nuclear-fusion"
    " socialism feudalism jazz impressionism chemistry biology geometry statistics meditation yoga karma"
).split()
CODE = "Python Java Rust C++ JavaScript Go Haskell SQL bash PHP Ruby Swift Kotlin React HTML CSS Perl Fortran assembly".split()
ILLS = "headache fever cough cold toothache rash backache flu insomnia allergy asthma diabetes burn migraine stomach-ache hiccups".split()
THINGS = (
    "a tie|a bike|a car|a boat|a guitar|a house|a tent|a table|the dishwasher|a printer|my phone|my car|a flat tyre|the sink|a chair"
    "|a garden|tomatoes|roses|a resume|a cover letter|an essay|a novel|a website|my taxes|a loan|a passport|a visa|an egg|the window"
    "|a stain|coffee stains|my hair|a dress|a scarf|a paper plane|a knot|a fire|a column in Excel|a row in Excel|a pivot table|a page in Word"
    "|an app on my iPhone|Photoshop|my Facebook account|my Instagram account|a contact|Windows|an email account|a wall|a lamp|weight|muscle|a language"
    "|chess|the piano|a friend|a splinter|a tooth|a virus|spam|a tattoo|a tree|snow|the lock on my door|my bike lock|a house key|my car key|a spare key|my wifi password"
)  # fmt: skip

EN = (
    "{What is|what's|tell me|name|whats|do you know} the {capital|population|currency|flag|president|king|national anthem|largest city|highest mountain|longest river|area|history|language|climate|time zone} of {COUNTRY}",
    "{Who is|who was|tell me about|what did|when was|when did|where was} {PERSON}[ born| die| invent| famous for]",
    "{How do I|how can I|how to|what is the best way to|teach me to|I want to} {make|cook|bake|prepare|eat} {FOOD}",
    "{Give me|I need|do you have|what is|share} a {recipe for|good recipe for} {FOOD}",
    "{Write|compose|create|make|give me} {a poem|a story|a song|an essay|a joke|a letter|a haiku|a speech|a tweet|a limerick|a tale|a slogan|lyrics|a short story|a blog post} about {ANIMAL}[s]",
    "{Write|compose|create|make} {me|for me} {a poem|a story|a song|an essay|a letter|an email|a novel|a speech} {about|on|for} {WORD}",
    "{Tell|tell me|say|give me|do you know|I want} {a joke|a riddle|a story|a fun fact|something funny|a fairy tale|a secret|a pun|a quote|a proverb|an interesting fact|something interesting}",
    "{What is|what's|calculate|compute|how much is|solve|work out} {NUM} {plus|+|times|*|minus|-|divided by|/|x|to the power of|percent of|mod} {NUM}",
    "{What is|solve|calculate|compute|find} the {square root|derivative|integral|factorial|logarithm|cube|double|half|sum|average|prime factors} of {NUM}",
    "{Explain|what is|define|tell me about|how does|describe|summarize|what do you think about|teach me} {SCIENCE}[ work| to me| to a child| in simple terms]",
    "{Write|give me|show me|I need|create|how do I write} {a|some} {CODE} {function|program|script|code|class|loop|snippet|example|regex|query} {to|that can|for} {sort a list|reverse a string|add two numbers|read a file|compute primes|parse JSON|download a page|print hello world|find duplicates|count words}",
    "{How do I|how to|can you|help me|explain how to} {learn|use|install|write|debug|compile|understand|program in} {CODE}",
    "{I have|my child has|my mother has|how do I treat|what helps against|what causes|cure for|is it bad to have} a {ILL}[, what should I do|, what now]",
    "{What is|what's|how is|tell me|will there be} the {weather|forecast|temperature|traffic|news|air quality|humidity}[ today| tomorrow| in CITY| like in CITY| right now| this week]",
    "{Will it|is it going to|does it} {rain|snow|be cold|be sunny|be warm|storm}[ today| tomorrow| in CITY| this weekend]",
    "{Who won|who will win|when is|who played in|what was the score of} the {world cup|election|super bowl|game|match|final|oscars|champions league|Olympics|race|tournament|war|lottery}[ yesterday| last year| in 20YY| this year]",
    "{What|which} {movie|book|song|game|series|album|restaurant|hotel|phone|laptop|car|gift|wine|present|film|podcast} {should I|would you|can you|do you} {watch|read|buy|recommend|suggest|choose|like|get}",
    "{How|what} {old|tall|far|big|long|heavy|fast|deep|high|many people live|many people are} {is|in} {the moon|the sun|CITY|COUNTRY|a ANIMAL|Mount Everest|the earth|an ANIMAL|PERSON|the universe|the Eiffel tower|Mars}",
    "{Translate|how do you say|what is|say} {WORD} {in|to|into} {German|French|Spanish|Italian|Japanese|Latin|Russian|Korean|Arabic|Swedish}",
    "{How do I|how can I|how to|what's the way to|I want to|help me|is there a way to|what is the best way to|where can I|tell me how to} {fix|repair|clean|sell|buy|paint|build|draw|grow|cut|wash|learn|lose|gain|tie|wear|open|get|remove|add|install|change|delete|replace|start|stop|update|check|find|use|set up|cancel|lock|make} {THING}",
    "{What is|what are|tell me|give me} the {meaning of|purpose of|secret of|point of|best} {life|love|happiness|success|dreams|WORD}",
    "{Where|when|why|how} {is|are|do|does|did|was|can|should} {the ANIMAL|people|my friend|a ANIMAL|the WORD|the moon|my boss|my mother|dogs|cats|birds|planes|the sea|children|the sky} {blue|sleep|go|eat|fly|swim|like me|here|open|so small|run|happy|from|cry|salty|late|angry}",
    "{Can you|could you|please|would you|I want you to|I'd like you to} {sing|dance|draw a picture|play a game|tell the future|book a flight|order pizza|call my mother|buy tickets|summarize this text|proofread my essay|write code|do my homework|translate this|paint a picture|generate an image|search the web|set an alarm|turn on the lights|correct my grammar|make a plan for my week|roleplay|pretend to be a pirate|count to ten|plan my trip}",
    "{Do you|can you|are you able to|would you} {like|love|hate|know|feel|understand|speak|want|dream of|believe in|remember} {music|me|pizza|humans|God|French|love|pain|football|Spanish|poetry|art|German|yesterday|jokes|colors|politics|chess}",
    "{What|which} {day|date|year|time|month|week} is {it|today|tomorrow|it now|it in CITY}",
    "what time is it[ now| in CITY| please]",
    "{Should I|is it good to|is it ok to|can I|is it safe to|is it legal to} {invest in stocks|buy a house|quit my job|eat sugar|marry|travel to COUNTRY|buy bitcoin|drink coffee|learn CODE|get a dog|sue my neighbour|take aspirin|skip breakfast|move to CITY|sell my car|eat FOOD at night}",
    "{Who|what} {invented|discovered|wrote|painted|built|composed|founded|directed} {the telephone|America|Hamlet|the Mona Lisa|the light bulb|penicillin|the pyramids|the radio|Microsoft|Google|the internet|the printing press|gravity|the wheel|Star Wars|Harry Potter|the car|WORD}",
    "{I am|I feel|I'm} {sad|bored|hungry|tired|lonely|angry|happy|in love|sick|afraid|stressed|cold|drunk|lost|late|rich|confused}[ today| right now]",
    "{What is|tell me about|explain|describe} {the ANIMAL|a ANIMAL|CITY|COUNTRY|the WORD|a WORD|the second world war|the french revolution|the roman empire|the stock market|the big bang|a black hole|the renaissance|the cold war|NONSENSE|NONSENSE|the NONSENSE|a NONSENSE}",
    "{How|where} {do I|can I} {get to|travel to|fly to|drive to|move to|find a job in|find a flat in|eat well in} CITY",
    "{NONSENSE|WORD} {NONSENSE|WORD}[ NONSENSE| WORD]",
    "{NONSENSE|WORD}",
    "{How do I|can you|what is|why does|where is|I want to} NONSENSE[ NONSENSE| WORD| a WORD| the NONSENSE]",
    "{How do I|how can I|how to|I want to} {add|remove|change|set|install|find|use|update|start|get} {a|the|my} {NONSENSE|WORD}[ in NONSENSE| to my NONSENSE| from the WORD]",
    "{What is|what's|explain} {an API in general|a neural network|machine learning|the internet|a CPU|the cloud|Linux|Docker|Kubernetes|a database|git|an operating system|ChatGPT|a compiler|recursion|a transformer|deep learning|Windows|a browser|TCP|DNS|HTML|an IP address|JSON|a hash table}",
    "{Compare|what is the difference between|which is better,} {ANIMAL|WORD|FOOD|CODE|COUNTRY} {and|or|with} {ANIMAL|WORD|FOOD|CODE|COUNTRY}",
    "{Summarize|correct|translate|rewrite|improve|shorten|continue} {this|the following}[ text| sentence| paragraph]: {the|a|my} {WORD|NONSENSE|ANIMAL} {is|was|has|likes|eats} {the|a|very} {WORD|NONSENSE|FOOD}",
    "{The|my|a} {WORD|ANIMAL|NONSENSE} {is|was|likes|eats|runs|sleeps|has|wants} {WORD|FOOD|NONSENSE|a WORD}",
    "{List|name|give me|tell me} {NUM|three|five|ten|some|all} {ANIMAL|animals|cities|countries|colors|planets|fruits|WORD|names|movies|books|reasons to live|gift ideas|words that rhyme with WORD|synonyms for WORD|tips for CITY}",
)  # fmt: skip

ZH = (
    "{COUNTRYZ}的{首都|人口|货币|国旗|总统|面积|历史|语言|最高的山|最长的河}{是什么|是哪里|是多少|是谁|怎么样}",
    "{COUNTRYZ}有多{大|少人}", "{谁是|介绍一下|讲讲|说说}{PERSONZ}", "{PERSONZ}{是谁|是哪国人|什么时候出生|写了什么|发明了什么|多大了}",
    "{怎么|如何|怎样|教我}{做|煮|炒|烤|包|蒸}{FOODZ}", "{给我|有没有|我要|推荐}{一个|一份|}{FOODZ}的{菜谱|做法|食谱}", "{FOODZ}{怎么做|的做法|好吃吗|有多少热量|健康吗}",
    "{写|作|给我写|帮我写|请写}{一首诗|一个故事|一首歌|一篇作文|一封信|一篇文章|一个笑话|一段话|一份简历|一个小说|一首关于WORDZ的诗|一篇关于WORDZ的文章|一个关于ANIMALZ的故事}",
    "{讲|说|来|给我讲}{一个|个}{笑话|故事|谜语|冷笑话|童话|鬼故事|段子}", "{NUM}{加|减|乘|除以|乘以|+|-|*|/}{NUM}{等于多少|是多少|等于几|}", "{计算|求|算一下}{NUM}的{平方根|平方|阶乘|立方|一半|两倍}",
    "{解释|什么是|介绍|解释一下|说说}{SCIENCEZ}", "{SCIENCEZ}{是什么|是什么意思|有什么用|的原理是什么}", "{用|}{CODE}{写|怎么写}{一个|}{排序|函数|爬虫|程序|循环|脚本|游戏|网页}", "{怎么|如何}{学|学习|安装|使用|用}{CODE|英语|日语|钢琴|游泳|画画|编程|数学|开车|吉他|法语}",
    "我{头疼|发烧|感冒|咳嗽|肚子疼|失眠|牙疼|过敏|腰疼|嗓子疼}{了|}{怎么办|，怎么办|吃什么药|要看医生吗}", "{CITYZ|今天|明天|CITYZ今天|CITYZ明天|这周末}{天气|天气怎么样|会下雨吗|气温多少|冷吗|热吗|空气质量怎么样|下雪吗}",
    "{昨天的|今年的|}{世界杯|比赛|奥运会|选举|决赛|欧冠}{谁赢了|什么时候开始|结果怎么样|比分是多少}", "{推荐|给我推荐|介绍}{一部电影|一本书|一首歌|一家餐厅|一个游戏|一部电视剧|一款手机|一个旅游景点|几本小说|一台电脑|一份礼物}", "{现在|今天}{几点了|几号|星期几|是几月|是什么日子|是什么节日}",
    "{把|请把}{WORDZ|这句话|这段话}{翻译成|译成}{英语|法语|德语|日语|俄语}", "{WORDZ}用{英语|法语|日语|德语}怎么说", "{月亮|太阳|地球|CITYZ|COUNTRYZ|长城|珠穆朗玛峰|火星|ANIMALZ}有多{大|远|高|重|长|老}", "{生命|爱情|人生|幸福|成功|WORDZ}的{意义|本质|秘密}是什么",
    "{怎么|如何|怎样|我想}{修|洗|买|卖|画|种|减|增|养|折|打|找|做|添加|删除|更换|安装|取消}{自行车|汽车|衣服|房子|花|肥|ANIMALZ|纸飞机|领带|工作|女朋友|男朋友|番茄|手机|电视|窗户|护照|签证|指甲|头发|微信好友|微信群|联系人|轮胎|灯泡|门锁|家门钥匙|车钥匙|WORDZ}",
    "{我|我今天|我现在|我最近}{很|好|非常|有点}{难过|无聊|饿|累|孤独|生气|开心|害怕|焦虑|困|烦|高兴}", "你{喜欢|爱|讨厌|会|认识|相信}{音乐|我|唱歌|跳舞|吃饭|ANIMALZ|上帝|画画|下棋|说法语|足球|做梦|PERSONZ}吗", "{为什么|怎么}{天是蓝的|海水是咸的|鸟会飞|人要睡觉|猫怕水|会下雨|月亮会变|我睡不着|他不理我|草是绿的|ANIMALZ会叫|人会做梦|WORDZ这么贵}",
    "{去|到}{CITYZ|COUNTRYZ}{怎么走|怎么去|旅游要多少钱|玩什么|坐什么车|的机票多少钱}", "{谁|哪个人}{发明|发现|写|画|建造}了{电话|美洲|红楼梦|蒙娜丽莎|电灯|长城|飞机|互联网|西游记|相对论}", "{CITYZ|COUNTRYZ|WORDZ|ANIMALZ|WORDZ和WORDZ}", "{WORDZ}{是什么|在哪里|怎么样|多少钱|好不好|怎么用|有几种}",
    "{我|}应该{买房|买股票|辞职|结婚|养ANIMALZ|学CODE|去COUNTRYZ|吃FOODZ|投资比特币}吗", "{帮我|请|你能}{订机票|点外卖|打电话|唱首歌|画一幅画|做作业|写代码|总结这段文字|改作文|查新闻|开灯|定闹钟|算命|买票|做计划|搜索一下WORDZ|下盘棋}{吗|}", "{比较|说说}{WORDZ|ANIMALZ|FOODZ|CODE}和{WORDZ|ANIMALZ|FOODZ|CODE}[的区别]", "{什么是|解释一下}{神经网络|机器学习|互联网|云计算|数据库|操作系统|区块链|人工智能|深度学习|编译器|递归|Linux|Docker|浏览器}",
    "{列出|说出|告诉我}{三个|五个|十个|一些}{国家|城市|动物|颜色|水果|电影|成语|WORDZ}", "{NONSENSE}{是什么|怎么用|}", "{这|那}{只ANIMALZ|个WORDZ}{很好|不见了|在睡觉|很贵|是谁的}",
)  # fmt: skip

COUNTRIES_ZH = "法国 德国 意大利 西班牙 日本 美国 英国 印度 巴西 加拿大 墨西哥 埃及 俄罗斯 韩国 泰国 越南 澳大利亚 希腊 土耳其 瑞士 荷兰 波兰 挪威 阿根廷".split()
PERSONS_ZH = "爱因斯坦 牛顿 莎士比亚 莫扎特 拿破仑 李白 杜甫 孔子 鲁迅 秦始皇 姚明 马云 梅西 贝多芬 达尔文 曹操 诸葛亮 周杰伦 毕加索 居里夫人".split()
FOODS_ZH = "红烧肉 蛋糕 面包 饺子 披萨 宫保鸡丁 麻婆豆腐 番茄炒蛋 火锅 米饭 面条 汤 牛排 寿司 咖啡 奶茶 包子 粽子 月饼 鱼香肉丝 炒饭 沙拉".split()
ANIMALS_ZH = (
    "猫 狗 马 牛 大象 狮子 老虎 鲸鱼 企鹅 兔子 熊猫 猴子 鱼 鸟 蛇 狼 恐龙 蝴蝶 长颈鹿 乌龟".split()
)
SCIENCE_ZH = "引力 光合作用 进化论 电 相对论 通货膨胀 民主 磁场 代数 微积分 哲学 心理学 基因 量子力学 比特币 气候变化 星座 核聚变 资本主义 黑洞 股票 瑜伽 中医".split()

FOREIGN = (
    "{Wie|Was|Wo|Wer|Warum} {ist|sind|kann ich|mache ich|finde ich|geht} {das|ein Modell|der Schlüssel|die Hauptstadt|es dir|die Datei|das Wetter|dein Name}",
    "{Ich|Wir} {möchte|will|brauche|habe|suche} {ein|das|einen} {Modell|Schlüssel|Problem|Buch|Rezept|neues Modell}[ hinzufügen| bitte]", "{Hallo|Guten Tag|Guten Morgen|Danke|Tschüss|Servus|Moin}[, wie geht es dir]",
    "{Comment|Où|Quel|Pourquoi|Qui} {est|sont|puis-je|faire|ajouter} {le|la|un|une} {modèle|clé|capitale|fichier|temps|problème}", "{Bonjour|Salut|Merci|Au revoir|Bonsoir}[, comment ça va]",
    "{Cómo|Dónde|Qué|Quién|Cuál} {es|está|puedo|agrego|hago} {el|la|un|una} {modelo|clave|capital|archivo|tiempo}", "{Hola|Gracias|Adiós|Buenos días|Buenas tardes}[, cómo estás]",
    "{Come|Dove|Che cosa|Chi} {è|sono|posso|aggiungo|faccio} {il|la|un|una} {modello|chiave|capitale|file}", "{Ciao|Grazie|Buongiorno|Arrivederci}", "{Как|Что|Где|Кто} {это|мне|добавить|найти} {модель|ключ|столица|файл}", "{Привет|Спасибо|Здравствуйте|Пока}",
    "{モデル|キー|ファイル|ログ}{を追加するには|はどこですか|の使い方を教えて|について教えてください}", "{こんにちは|ありがとう|さようなら|おはよう}", "{Olá|Obrigado|Bom dia}[, como vai]", "{Como|Onde|O que} {é|adiciono|posso} {o|um|a} {modelo|chave|arquivo}", "{안녕하세요|감사합니다|모델을 추가하려면|이름이 뭐예요}",
    "{Hoe|Waar|Wat} {is|kan ik|voeg ik} {een|het} {model|sleutel|bestand}[ toevoegen]", "{Jak|Gdzie|Co} {jest|dodać|mogę} {model|klucz|plik}",
)  # fmt: skip


def _slots(rng: random.Random) -> dict[str, str]:
    """Fillers in order: longer names first, so that COUNTRYZ is not taken for COUNTRY."""
    return {
        "COUNTRYZ": rng.choice(COUNTRIES_ZH),
        "PERSONZ": rng.choice(PERSONS_ZH),
        "FOODZ": rng.choice(FOODS_ZH),
        "ANIMALZ": rng.choice(ANIMALS_ZH),
        "SCIENCEZ": rng.choice(SCIENCE_ZH),
        "WORDZ": rng.choice(words.WORDS_ZH),
        "CITYZ": rng.choice(words.CITIES_ZH),
        "COUNTRY": rng.choice(COUNTRIES),
        "PERSON": rng.choice(PERSONS),
        "FOOD": rng.choice(FOODS),
        "ANIMAL": rng.choice(ANIMALS),
        "SCIENCE": rng.choice(SCIENCE).replace("-", " "),
        "CODE": rng.choice(CODE),
        "ILL": rng.choice(ILLS).replace("-", " "),
        "THING": rng.choice(THINGS.split("|")),
        "CITY": rng.choice(words.CITIES),
        "NUM": str(rng.choice([rng.randint(1, 12), rng.randint(10, 99), rng.randint(100, 9999)])),
        "YY": f"{rng.randint(0, 26):02d}",
    }


def question(rng: random.Random, *, zh: bool) -> str:
    """One question about anything but edged."""
    text = sample(rng.choice(ZH if zh else EN), rng)
    for slot, value in _slots(rng).items():
        made_up = rng.random() < 0.15 and slot not in ("NUM", "YY", "CODE")
        while slot in text:
            text = text.replace(slot, words.syllables(rng) if made_up else value, 1)
            value = _slots(rng)[slot]  # noqa: PLW2901 - the next mark gets its own filler
    while "NONSENSE" in text:
        text = text.replace("NONSENSE", words.syllables(rng), 1)
    while "WORD" in text:
        text = text.replace("WORD", rng.choice(words.WORDS), 1)
    return text
