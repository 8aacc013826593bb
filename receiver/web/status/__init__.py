"""The status page of the operations listener. What renders it is loaded when it is first asked for."""
