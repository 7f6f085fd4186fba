"""Replies as they come in: whole, in pieces, or as Flower's objects; what nobody asked for is refused."""

import threading

from flwr.app import Message

from nufed.deploy.flower_runtime.state import LinkStateFactory, check_abort
from nufed.deploy.flower_runtime.wire import fleet_pb2 as fleet
from nufed.deploy.flower_runtime.wire import message_pb2, remove_content_from_message
from nufed.deploy.flower_runtime.words import ApiErrorCode, FlowerError, Status
from nufed.deploy.network import fleet_headers as headers
from nufed.deploy.network.calls import Call
from nufed.deploy.network.deliveries import Deliveries
from nufed.deploy.network.message_bytes import read_reply
from nufed.deploy.network.pieces import assemble, parse_number
from nufed.deploy.network.uploads import read_announcement

_LONGEST_ID = 128


class ReplyIntake:
    """Puts replies where the ServerApp's grid finds them; any thread may call it.

    Args:
        states: Flower's state, which knows that there is a reply.
        deliveries: has the reply itself.
    """

    def __init__(self, states: LinkStateFactory, deliveries: Deliveries) -> None:
        self._states, self.deliveries = states, deliveries
        self._assembling = threading.Lock()

    def take(self, request: fleet.PushMessagesRequest, context: Call) -> fleet.PushMessagesResponse:
        """Take a node's reply, or the announcement of one whose objects follow.

        Raises:
            FlowerError: it answers for another node, or is no reply.
        """
        metadata, node_id = request.messages_list[0].metadata, request.node.node_id
        if metadata.src_node_id != node_id:
            raise FlowerError(ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED, "a node may answer for itself only")
        message_id = metadata.reply_to_message_id
        if len(metadata.message_id) > _LONGEST_ID or not self.deliveries.accepts(metadata, request.ByteSize()):
            context.send_initial_metadata(((headers.LATE, "1"),))
            return fleet.PushMessagesResponse()
        if headers.has_header(context.invocation_metadata(), headers.WHOLE):
            response = self._take_whole(request, context)
        else:
            response = self._take_announced(request)
        self.deliveries.note_answered(node_id, message_id, is_complete=not response.objects_to_push)
        return response

    def _take_announced(self, request: fleet.PushMessagesRequest) -> fleet.PushMessagesResponse:
        """Take the announcement of a reply whose objects follow."""
        if (announced := read_announcement(request)) is None:
            raise FlowerError(ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED, "a reply has one tree of objects, its own")
        reply, object_ids = announced
        reply_id, message_id = reply.metadata.message_id, reply.metadata.reply_to_message_id
        self._check_run(reply)
        missing = self.deliveries.begin_upload(message_id, reply_id, object_ids)
        if self._states.state().store_message_res(reply) is None:
            self.deliveries.drop_upload(message_id)
            missing = []
        return fleet.PushMessagesResponse(results={reply_id: 0}, objects_to_push=missing, session_id=message_id)

    def _take_whole(self, request: fleet.PushMessagesRequest, context: Call) -> fleet.PushMessagesResponse:
        """Take a reply that came in this call, or in pieces before it."""
        head = request.messages_list[0]
        announced = headers.header_text(context.invocation_metadata(), headers.PIECES)
        reply = self._assemble(head, parse_number(announced) or 0) if announced else read_reply(head)
        if reply is None:
            context.send_initial_metadata(((headers.LATE, "1"),))
            return fleet.PushMessagesResponse()
        self._check_run(reply)
        if not self.deliveries.put_reply(reply):
            context.send_initial_metadata(((headers.LATE, "1"),))
        elif self._states.state().store_message_res(remove_content_from_message(reply)) is None:
            self.deliveries.drop_reply(reply.metadata.reply_to_message_id)
            context.send_initial_metadata(((headers.LATE, "1"),))
        return fleet.PushMessagesResponse(results={reply.metadata.message_id: 0})

    def _check_run(self, reply: Message) -> None:
        state, run_id = self._states.state(), reply.metadata.run_id
        if reason := check_abort(run_id, [Status.PENDING, Status.STARTING, Status.FINISHED], state):
            raise FlowerError(ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED, reason)

    def _assemble(self, head: message_pb2.Message, count: int) -> Message | None:
        """Return a reply that came in pieces, or None if some are missing; one at a time, for the memory it takes."""
        metadata = head.metadata
        with self._assembling:
            found = self.deliveries.take_pieces(metadata.src_node_id, metadata.reply_to_message_id, count)
            if not found:
                return None
            proto = assemble(found)
            proto.metadata.CopyFrom(metadata)
            return read_reply(proto)
