// A stream on a socket closes it, as long as the kernel carries the socket.
#include "check.h"

int main(void) {
  struct sockaddr_in name;
  char bytes[16];
  int l = listener(&name), c = socket(AF_INET, SOCK_STREAM, 0);
  CHECK(connect(c, (struct sockaddr *)&name, sizeof name) == 0);
  int a = accept(l, 0, 0);
  int copy = dup(c);
  FILE *stream = fdopen(copy, "w");
  CHECK(fprintf(stream, "stream") == 6);
  CHECK(fclose(stream) == 0);
  CHECK(fcntl(copy, F_GETFD) == -1);
  CHECK(recv(a, bytes, sizeof bytes, 0) == 6);
  CHECK(open("/dev/null", O_RDONLY) == copy);
  CHECK(getpeername(copy, (struct sockaddr *)bytes, &(socklen_t){16}) == -1 && errno == ENOTSOCK);
  CHECK(close(copy) == 0);
  CHECK(close(copy) == -1 && errno == EBADF);
  return 0;
}
