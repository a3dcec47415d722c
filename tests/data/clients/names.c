/* Looks names up by the C library, every address of both families: NAME and its addresses, or "not found". */

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		struct addrinfo want = { .ai_socktype = SOCK_STREAM }, *found = NULL;
		int error = getaddrinfo(argv[i], NULL, &want, &found);
		printf("%s", argv[i]);
		if (error == EAI_NONAME)
			printf(" not found");
		else if (error)
			printf(" %s", gai_strerror(error));
		for (struct addrinfo *a = found; a; a = a->ai_next) {
			char text[INET6_ADDRSTRLEN];
			const void *ip = a->ai_family == AF_INET
				? (const void *)&((struct sockaddr_in *)a->ai_addr)->sin_addr
				: (const void *)&((struct sockaddr_in6 *)a->ai_addr)->sin6_addr;
			printf(" %s", inet_ntop(a->ai_family, ip, text, sizeof text));
		}
		printf("\n");
		if (found)
			freeaddrinfo(found);
	}
	return 0;
}
