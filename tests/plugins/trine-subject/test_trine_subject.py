# trine-subject/test_trine_subject.py
from trine_subject import Subject, SubjectMessage

from trine.testing import TriggerConformance


class TestSubject(TriggerConformance):
    payload_model = SubjectMessage
    redelivers = False  # plain NATS messages do not come again

    def make(self):
        return Subject(subject="sensors.*.heat")

    async def provoke(self, client):
        client.bus.connection.send("sensors.kitchen.heat", b"21.5")
