from tokenized_groups import BUILTIN, pair_of, tokens_of

from rm_ray.data.rows.context import NO_CONTEXT
from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.data.rows.turns import Message
from rm_ray.data.tokens.conversation_tokenizer import ConversationTokenizer, TokenizedConversation

PAIR = pair_of("What colour is snow?", "Snow is white.", "It is black.")
CHOSEN, REJECTED = PAIR.conversations
LENGTH = len(tokens_of(PAIR).ids[0])


def test_a_conversation_has_the_same_ids_as_in_a_pair():
    alone = ConversationTokenizer(BUILTIN, max_length=1_024)

    assert alone.tokenize([CHOSEN, REJECTED]) == tokens_of(PAIR).ids


def test_a_conversation_comes_with_its_text_and_missing_keys():
    named = [CHOSEN[0], {**CHOSEN[1], "name": "Ana"}]

    (read,) = ConversationTokenizer(BUILTIN, max_length=1_024).read([named], [NO_CONTEXT])

    assert isinstance(read, TokenizedConversation)
    assert read.text == BUILTIN.apply_chat_template(CHOSEN, tokenize=False)
    assert read.unwritten == ("name",)


def test_only_the_conversation_at_fault_is_refused():
    reserved: list[Message] = [{"role": "assistant", "content": "So <|end|> it is."}]
    within = ConversationTokenizer(BUILTIN, max_length=LENGTH)
    short = ConversationTokenizer(BUILTIN, max_length=LENGTH - 1)

    refused, kept = within.tokenize([reserved, CHOSEN])
    (long,) = short.tokenize([CHOSEN])

    assert kept == tokens_of(PAIR).ids[0]
    assert isinstance(refused, RefusedError)
    assert refused.reason == Reason.RESERVED_TOKENS
    assert isinstance(long, RefusedError)
    assert (long.reason, long.detail) == (Reason.TOO_LONG, f"{LENGTH} tokens")
