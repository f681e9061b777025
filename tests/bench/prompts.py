"""Prompts that no prefix cache has seen before, the same for both sides of a pair."""

import random

_TEXT = """
able about above across action after again against agree air allow almost alone along already also
always among amount anger animal answer appear apple area arm army around arrive art ask attack
baby back bad bag ball bank base basket bath beautiful because bed before begin behind believe
bell below between bird birth bite black blood blow blue board boat body bone book border both
bottle bottom box boy brain branch brave bread break breath brick bridge bright bring brother
brown brush build burn business butter button buy cake call camera camp can card care carry case
cat catch cause center certain chain chair chalk chance change cheap cheese chief child choose
church circle city clean clear clock close cloth cloud coal coat coffee cold collar color comfort
common company compare complete condition connect control cook copper copy corn corner cotton
cough country course cover credit crime cross crowd cruel crush cry culture cup current curtain
curve cushion custom cut damage danger dark daughter day dead dear death debt decide deep degree
delicate depend describe desert design desire destroy detail develop different dinner direction
dirty discover discuss disease distance divide doctor dog door doubt down drain draw dream dress
drink drive drop dry dust ear early earth east easy edge education effect egg electric end engine
enough equal error event ever every example exchange exist expand expect expert eye face fact fail
fall false family farm father fear feather feeling female fertile fiction field fight finger fire
first fish fixed flag flame flat flight floor flower fly fold food foolish foot force forest fork
form forward fowl frame free frequent friend front fruit full future garden general get girl give
glass glove goat gold good grain grass great green grip group growth guide gun hair hammer hand
hang happy harbor hard harmony hat hate head healthy hear heart heat help high history hole hollow
hook hope horn horse hospital hour house humor ice idea important impulse increase industry ink
insect instrument insurance interest
"""
WORDS = tuple(_TEXT.split())


class Prompts:
    """Random English-like texts; one instance per pair and scenario, its seed in every text."""

    def __init__(self, seed: str) -> None:
        self.seed = seed

    def text(self, label: str, n_words: int) -> str:
        """Return ``n_words`` words in sentences, others for each label and seed."""
        rng = random.Random(f"{self.seed} {label}")
        words = rng.choices(WORDS, k=n_words)
        for i in range(0, n_words, 12):
            words[i] = words[i].capitalize()
            end = min(i + 11, n_words - 1)
            words[end] += "."
        return " ".join(words)


def user(text: str) -> dict[str, str]:
    """Return a user's message."""
    return {"role": "user", "content": text}


def system(text: str) -> dict[str, str]:
    """Return a system message."""
    return {"role": "system", "content": text}


def assistant(text: str) -> dict[str, str]:
    """Return a model's message."""
    return {"role": "assistant", "content": text}
