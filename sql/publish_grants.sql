-- What an account needs besides to put messages on the queue: for `relay`, and for `reconcile --publish` and `publish`.
GRANT INSERT (topic_name, body) ON {database}.{prefix}queue_message TO {user};
GRANT INSERT (queue_id, message_id, status) ON {database}.{prefix}queue_message_status TO {user};
