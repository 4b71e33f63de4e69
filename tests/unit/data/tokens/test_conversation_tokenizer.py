from tokenized_pairs import BUILTIN, pair_of, tokens_of

from rm_ray.data.rows.context import NO_CONTEXT
from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.data.rows.turns import Message
from rm_ray.data.tokens.conversation_tokenizer import ConversationTokenizer, TokenizedConversation

PAIR = pair_of("What colour is snow?", "Snow is white.", "It is black.")
LENGTH = len(tokens_of(PAIR).chosen_ids)


def test_a_conversation_has_the_same_ids_as_in_a_pair():
    alone = ConversationTokenizer(BUILTIN, max_length=1_024)

    tokens = tokens_of(PAIR)
    assert alone.tokenize([PAIR.chosen, PAIR.rejected]) == [tokens.chosen_ids, tokens.rejected_ids]


def test_a_conversation_comes_with_its_text_and_missing_keys():
    named = [PAIR.chosen[0], {**PAIR.chosen[1], "name": "Ana"}]

    (read,) = ConversationTokenizer(BUILTIN, max_length=1_024).read([named], [NO_CONTEXT])

    assert isinstance(read, TokenizedConversation)
    assert read.text == BUILTIN.apply_chat_template(PAIR.chosen, tokenize=False)
    assert read.unwritten == ("name",)


def test_only_the_conversation_at_fault_is_refused():
    reserved: list[Message] = [{"role": "assistant", "content": "So <|end|> it is."}]
    within = ConversationTokenizer(BUILTIN, max_length=LENGTH)
    short = ConversationTokenizer(BUILTIN, max_length=LENGTH - 1)

    refused, kept = within.tokenize([reserved, PAIR.chosen])
    (long,) = short.tokenize([PAIR.chosen])

    assert kept == tokens_of(PAIR).chosen_ids
    assert isinstance(refused, RefusedError)
    assert refused.reason == Reason.RESERVED_TOKENS
    assert isinstance(long, RefusedError)
    assert (long.reason, long.detail) == (Reason.TOO_LONG, f"{LENGTH} tokens")
