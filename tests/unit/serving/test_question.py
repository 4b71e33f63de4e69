from rm_ray.serving.question import Question


def test_a_question_has_no_tools_and_no_options_unless_given():
    question = Question(conversations=("text", (1, 2)))
    assert (question.tools, question.options) == (None, {})
